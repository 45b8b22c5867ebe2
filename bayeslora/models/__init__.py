"""From a pretrained network to answer logits: loading, LoRA sites, noise, fan-out, read-out."""
