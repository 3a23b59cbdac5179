"""What a finished run learnt, as one page to look at and two lists to act on."""
