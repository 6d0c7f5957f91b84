"""From rows to token ids: input layouts, conversations and tokenization. No torch, no files of its own."""
