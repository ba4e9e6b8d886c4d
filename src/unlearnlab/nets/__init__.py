"""Networks: a spec that, given image shape and number of classes, makes an ``nn.Module``."""
