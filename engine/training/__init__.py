"""Trains, distils, evaluates and exports the embedded demo pair.

This room knows text corpora, a byte-level tokenizer, small Llama models and how to teach a
draft its target's distribution. It refuses to know the serving engine: nobody imports it, and it
imports nothing but torch, transformers, tokenizers and rich.
"""
