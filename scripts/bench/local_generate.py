"""The baseline of the inference benchmark: `transformers.generate` in a process of its own, one compute thread.

Reads one line of JSON a run ({"ids": [...], "new": 64}) and answers with one ({"seconds": ..., "first": ..., "ids":
[...]}).
"""

import json
import sys
import time


def main() -> None:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        prompt = torch.tensor([task["ids"]])
        with torch.inference_mode():
            began = time.perf_counter()
            model.generate(prompt, max_new_tokens=1, min_new_tokens=1, do_sample=False)
            first = time.perf_counter() - began
            began = time.perf_counter()
            out = model.generate(prompt, max_new_tokens=task["new"], min_new_tokens=task["new"], do_sample=False)
            seconds = time.perf_counter() - began
        print(json.dumps({"seconds": seconds, "first": first, "ids": out[0, prompt.shape[1] :].tolist()}), flush=True)


main()
