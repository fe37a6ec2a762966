"""Networks, images and files are looked at; nothing is trained."""
