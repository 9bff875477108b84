"""Statistical translation: word alignment by EM."""
