"""Train small digit classifiers, make them forget 62 images, and ask whether they did: seconds on one core."""

from dataclasses import replace

import torch

import unlearnlab as ul
from unlearnlab.data.partition import split_for

parts = ul.build("partition", "stratified")(ul.build("dataset", "digits")(), seed=0)
train = ul.build("corruption", "symmetric_noise")(parts.train, seed=0)  # a fifth gets a wrong label, which only memory can know
wrong, right = train.ids[train.mislabelled], train.ids[~train.mislabelled]
split = split_for(replace(parts, train=train), torch.cat([wrong[:31], right[:31]]), seed=0)

net, recipe = ul.build("net", "mlp")((1, 8, 8), classes=10), ul.Recipe(epochs=80, lr=0.2)
originals = recipe(ul.Stack.init(net, seeds=range(16)), split.train)
oracles = recipe(ul.Stack.init(net, seeds=range(100, 116)), split.retain)  # never saw the forget set

unlearned = {name: ul.unlearn(originals, forget=split.forget, retain=split.retain, method=name, lr=0.05, batch=50) for name in ("finetune", "salun")}
print(ul.audit(originals=originals, oracles=oracles, unlearned={"original": originals, **unlearned}, split=split))
