"""How a forget set is divided into groups that are forgotten one after the other."""
