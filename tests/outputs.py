"Run chapters from the top and store what they print: python tests/outputs.py nbs/06_losses.ipynb …. Pictures are stored as palette PNGs, a quarter of the bytes."
import base64,io,os,subprocess,sys
from pathlib import Path

from PIL import Image
from fastcore.nbio import read_nb,write_nb

env = dict(os.environ, PATH=f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}')

def shrink(png:str)->str:
    "A PNG in base64, as a palette PNG if that is smaller: plots have few colours, photographs are dithered"
    im = Image.open(io.BytesIO(base64.b64decode(png)))
    if im.mode=='P': return png
    im = Image.alpha_composite(Image.new('RGBA', im.size, 'white'), im.convert('RGBA')).convert('RGB')
    if im.getcolors(20_000): im = im.quantize(64, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    else: im = im.quantize(256)
    f = io.BytesIO()
    im.save(f, 'PNG', optimize=True)
    return min(png, base64.b64encode(f.getvalue()).decode(), key=len)

def main(*nbs):
    for fn in map(Path, nbs):
        subprocess.run(['nbdev-test', str(fn), '--save'], check=True, env=env)
        nb = read_nb(fn)
        for c in nb.cells:
            for o in c.get('outputs', []):
                if 'image/png' in o.get('data', {}): o['data']['image/png'] = shrink(''.join(o['data']['image/png']))
        write_nb(nb, fn)
        subprocess.run(['nbdev-clean', '--fname', str(fn)], check=True, env=env)
        print(f'{fn}: {fn.stat().st_size/1000:.0f} kB')

if __name__=='__main__': main(*sys.argv[1:])
