"""Tokenizers: trained here from text, kept in the Hugging Face layout."""
