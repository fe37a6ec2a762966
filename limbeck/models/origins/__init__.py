"""Where weights come from: timm's hub, Hugging Face, weights files, finished students."""
