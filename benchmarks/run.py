"Every benchmark, one after the other: python benchmarks/run.py [DATA], a folder in Imagenette's layout for those that read pictures."
import subprocess,sys
from pathlib import Path

here = Path(__file__).parent
data = sys.argv[1:2]
for f in sorted(here.glob('*.py')):
    if f.name in ('run.py','report.py','peers.py'): continue
    needs = 'argv[1]' in f.read_text(encoding='utf-8')
    if needs and not data: print(f'{f.name}: skipped, it needs a folder of pictures: make bench DATA=folder')
    else: subprocess.run([sys.executable, str(f), *(data if needs else [])], check=True)
