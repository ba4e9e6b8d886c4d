"""Methods: how a model is made to forget. One paper, one file."""

from unlearnlab.spec import ALIASES

# What papers and published code call them; "NegGrad" is gradient ascent in some papers and NegGrad+ in others.
ALIASES["method"] = {
    "FT": "finetune",
    "GA": "gradient_ascent",
    "NG": "gradient_ascent",
    "NegGrad": "gradient_ascent",
    "NegGrad+": "neggrad_plus",
    "NG+": "neggrad_plus",
    "AscentDescent": "neggrad_plus",
    "RL": "random_label",
    "SRL": "random_label",
    "FT_prune": "l1_sparse",
    "FT_l1": "l1_sparse",
    "L1": "l1_sparse",
    "SalUn": "salun",
    "SSD": "ssd",
    "DEL": "del",
    "Retrain": "retrain",
}
