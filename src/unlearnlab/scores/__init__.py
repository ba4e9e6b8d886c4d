"""One number for every training image, higher = more memorised: memorisation itself, and its cheap proxies."""
