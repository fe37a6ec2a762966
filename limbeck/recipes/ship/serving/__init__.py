"""What ``limbeck serve`` is made of; only it imports these, which need the extra "serve"."""
