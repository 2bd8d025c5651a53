#!/usr/bin/env python3
"""The adapter of a LoRA run in PEFT: beside its base it gives the checkpoint's logits, and merged the checkpoint's weights.

    tests/peers/.venv/bin/python tests/peers/peft_adapter.py BASE RUN/step-N

BASE is the Hugging Face directory (or hub id) that the run's student started from. Prints the largest differences and
fails where merged weights are further apart than one rounding of f32, or logits than 1e-4.
"""

import sys

import peft
import torch
import transformers


def load(path):
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def apart(a, b):
    return (a - b).abs().max().item()


def main(base_path, checkpoint):
    ids = torch.arange(3, 60).unsqueeze(0)
    base, merged = load(base_path), load(checkpoint)
    with torch.no_grad():
        before, wanted = base(ids).logits.clone(), merged(ids).logits
        adapted = peft.PeftModel.from_pretrained(base, f"{checkpoint}/adapter")
        logits = apart(adapted(ids).logits, wanted)
        ours = merged.state_dict()
        theirs = adapted.merge_and_unload().state_dict()
    assert ours.keys() == theirs.keys(), "the two have other parameters"
    # In units of the last place of each tensor's largest weight.
    ulps = {name: apart(theirs[name], w) / (w.abs().max().item() * 2**-23) for name, w in ours.items()}
    name = max(ulps, key=ulps.get)
    print(f"peft {peft.__version__}: logits {logits:.1e} apart (base to checkpoint {apart(before, wanted):.1e}), "
          f"merged weights at most {ulps[name]:.2f} ulp ({name})")
    return logits <= 1e-4 and ulps[name] <= 1


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(0 if main(*sys.argv[1:]) else "the adapter does not mean the same in PEFT")
