"""One number for every training image, higher = more memorised: memorisation itself, and its cheap proxies."""

from unlearnlab.spec import ALIASES

ALIASES["score"] = {
    "mem": "memorisation",
    "memorization": "memorisation",
    "binary_accuracy": "bi_acc",
    "heldout_retraining": "ho_ret",
    "curvature": "loss_curvature",
}
