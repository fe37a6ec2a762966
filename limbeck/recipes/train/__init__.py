"""One network is trained: distill (and chains of it), finetune."""
