"""Training: one loop for fine-tuning, distillation, sparsity training and quantization-aware training; the door is `compress/train.py`."""
