"RESULTS.md, a section a benchmark: each script replaces its own and leaves the others alone."
import os,platform,re,sys,time
from pathlib import Path
import torch

results = Path(__file__).parent/'RESULTS.md'

def machine()->str:
    "What this was measured on, in a line"
    cpu = Path('/proc/cpuinfo')
    names = re.findall('model name\t: (.+)', cpu.read_text()) if cpu.exists() else []
    gpu = f', {torch.cuda.get_device_name()}' if torch.cuda.is_available() else ''
    return (f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores{gpu}; Python {platform.python_version()}, "
            f"torch {torch.__version__}; {time.strftime('%Y-%m-%d')}; `python benchmarks/{' '.join(Path(o).name for o in sys.argv)}`")

def table(rows:list)->str:
    "Markdown of a list of rows, the first one the header"
    rows = [[str(o) for o in r] for r in rows]
    return '\n'.join('| '+' | '.join(r)+' |' for r in [rows[0], ['---']*len(rows[0]), *rows[1:]])

def write(title:str, body:str):
    "Print `body`, and put it under `## title` in RESULTS.md"
    head = '# Measurements\n\nWritten by the scripts in this folder, both sides of each comparison in one run. Ratios hold from one machine to another, rates do not.\n'
    parts = re.split(r'(?m)^(?=## )', results.read_text(encoding='utf-8')) if results.exists() else [head]
    new = f'## {title}\n\n{body.strip()}\n\n*{machine()}*\n'
    i = next((i for i,p in enumerate(parts) if p.startswith(f'## {title}\n')), None)
    if i is None: parts.append(new)
    else: parts[i] = new
    results.write_text('\n'.join(p.rstrip('\n')+'\n' for p in parts), encoding='utf-8')
    print(new)
