"""What an auditor can check of the sentence "no real image was read": files that were opened, the
kernel's limits, every byte of the teacher's file, and the hashes of a run. See docs/trust.md."""
