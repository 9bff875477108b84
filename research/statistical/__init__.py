"""Statistical translation: word alignment by EM, phrases, n-gram models, stack decoding."""
