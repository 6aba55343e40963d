"""minispec beside llama.cpp, transformers and OpenVINO GenAI: the same weights, prompts and tokens.

Every side reads the same GGUF file and gets the same prompts as ids, so that tokenizers cannot
differ; it continues past the end of an answer, to the same number of tokens, with the same number
of threads. Sides take turns, prompt by prompt, after a warm-up; the other engines are in processes
of their own, which wait meanwhile. A prompt's prefill is not counted, nor are tokens that come of
the prefill's own pass. Above temperature 0 every side draws from its whole distribution: no top-k,
no top-p.

Physics: a side that decodes one sequence is bound by reading its weights, so their bytes are stated
beside each speed, with the dtypes of weights and activations: sides that round them differently
compute different logits. Greedy ids are therefore compared with those of minispec in float32; where
they differ first, the gap between the two largest logits says how close the choice was.

llama.cpp and transformers must be there. A side that cannot run is named, with the reason.

    pip install 'minispec-decoding[peers]'
    python -m benchmarks peers --json build/peers.json --out build/peers.png
"""

from benchmarks.peers.command import main

__all__ = ["main"]
