"The loader under real faults: each must end in its sentence, in seconds, and leave no process behind"
import os,resource,signal,subprocess,sys,tempfile,threading,time,warnings
from pathlib import Path
import numpy as np,torch
from PIL import Image
from scratchai.files import *
from scratchai.loader import *
from scratchai.loader import _fork
import scratchai.loader as loader

class Numbers:
    "Items that take a while, and may be random"
    random = True
    def __init__(self, n=64, wait=0.): self.n,self.wait = n,wait
    def __len__(self): return self.n
    def __getitem__(self, i):
        time.sleep(self.wait)
        return torch.tensor([i, int(torch.randint(10**9, (1,))), int(np.random.randint(10**9))]),i

def children(pid=None):
    "Process ids of the descendants of `pid`, the resource tracker of Python's own apart"
    out = subprocess.run(['ps','-eo','pid,ppid,stat,args'], capture_output=True, text=True).stdout.splitlines()[1:]
    rows = [o.split(None, 3) for o in out]
    return [int(p) for p,pp,st,a in rows if int(pp)==(pid or os.getpid()) and 'Z' not in st and 'ps -eo' not in a
        and 'resource_tracker' not in a and 'forkserver' not in a]

def gone(pids, limit=4):
    "Have all of `pids` ended within `limit` seconds?"
    end = time.monotonic()+limit
    def alive(p):
        try: return Path(f'/proc/{p}/stat').read_text().rsplit(')', 1)[1].split()[0]!='Z'
        except OSError: return False
    while any(map(alive, pids)) and time.monotonic()<end: time.sleep(.05)
    return not any(map(alive, pids))

def says(f, *words, err=LoaderError, limit=15):
    t = time.monotonic()
    try: f()
    except err as e: msg = str(e)
    else: raise AssertionError(f'nothing was said where {words} should have been')
    assert all(o in msg for o in words), (words, msg)
    assert time.monotonic()-t<limit, f'{time.monotonic()-t:.0f} s'
    return msg

def rows(dl): return torch.cat([x for x,y in dl])

def start_methods():
    want = rows(DataLoader(Numbers(), 8, shuffle=True, n_workers=0, seed=3))
    for context in ('fork','forkserver','spawn'):
        with DataLoader(Numbers(), 8, shuffle=True, n_workers=2, seed=3, context=context) as dl: assert torch.equal(rows(dl), want), context

def killed():
    dl = DataLoader(Numbers(wait=.02), 4, n_workers=2)
    it = iter(dl)
    next(it)
    pids = list(dl.pool.procs)
    os.kill(pids[0], signal.SIGKILL)
    msg = says(lambda: list(it), 'killed by SIGKILL')
    assert gone(pids)
    assert len(rows(dl))==64
    dl.close()
    return msg

def stopped():
    dl = DataLoader(Numbers(wait=.02), 4, n_workers=2, timeout=2)
    it = iter(dl)
    next(it)
    pids = list(dl.pool.procs)
    for p in pids: os.kill(p, signal.SIGSTOP)
    msg = says(lambda: list(it), 'no batch came within 2 seconds')
    assert gone(pids)
    return msg

def bad_files():
    with tempfile.TemporaryDirectory() as d:
        d,ok = Path(d),Image.effect_noise((64,64), 50).convert('RGB')
        for i in range(12): ok.save(d/f'{i:02}.jpg')
        (d/'03.jpg').write_bytes((d/'03.jpg').read_bytes()[:700])
        ok.convert('P').save(d/'04.jpg', 'GIF')
        (d/'05.jpg').write_bytes(b'')
        (d/'07.jpg').unlink()
        (d/'07.jpg').mkdir()
        fns = [d/f'{i:02}.jpg' for i in range(12)]
        ds = Dataset(fns, labels=[0]*12)
        (d/'06.jpg').unlink()
        msg = says(lambda: list(DataLoader(ds, 4, n_workers=2)), 'Item 3', '03.jpg', 'cannot be read', err=ItemError)
        with warnings.catch_warnings(record=True) as w:
            dl = DataLoader(ds, 4, n_workers=2, skip_bad=True)
            assert sum(len(y) for _,y in dl)==8
        assert [e.index for e in dl.bad]==[3,5,6,7] and '4 of 12 items' in str(w[-1].message)
        assert [Path(p).name for p,_ in verify_images(fns, progress=False)]==['03.jpg','05.jpg','06.jpg','07.jpg']
        ok.resize((20,30)).save(d/'08.jpg')
        mixed = Dataset([d/'00.jpg',d/'08.jpg'], labels=[0,0], size=None)
        says(lambda: list(DataLoader(mixed, 2, n_workers=1)), 'different sizes', '08.jpg')
        dl.close()
    return msg

def flipped():
    "Two thousand damaged files through `verify_images` and a `skip_bad` epoch"
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as d:
        d,good = Path(d),[]
        for fmt in ('JPEG','PNG','GIF','BMP'):
            Image.effect_noise((48,48), 60).convert('RGB').save(d/'x', fmt)
            good.append((d/'x').read_bytes())
        (d/'x').unlink()
        for i in range(2000):
            b = bytearray(good[i%4])
            if i%3==0: b = b[:rng.integers(len(b))]
            else:
                for j in rng.integers(len(b), size=rng.integers(1, 30)): b[j] = rng.integers(256)
            (d/f'{i:04}.{"jpg png gif bmp".split()[rng.integers(4)]}').write_bytes(b)
        fns = get_image_files(d)
        bad = verify_images(fns, n_workers=2, progress=False)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            with DataLoader(Dataset(fns, labels=[0]*2000, size=32), 50, n_workers=2, skip_bad=True) as dl:
                n = sum(len(y) for _,y in dl)
                assert n+len(dl.bad)==2000, (n, len(dl.bad))
    return f'{len(bad)} of 2000 do not decode fully; a small-size epoch gave {n} pictures and named {2000-n} files'

script = '''
import os,sys,time,resource,signal
sys.path.insert(0, {here!r})
from check_loader import *
'''
def program(body, **kwargs):
    return subprocess.Popen([sys.executable, '-c', script.format(here=str(Path(__file__).parent))+body], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True, **kwargs)

def parent_ends(sig):
    "The program ends by `sig` in mid-epoch"
    p = program("""
dl = DataLoader(Numbers(10**4, .01), 4, n_workers=2)
for i,b in enumerate(dl):
    if i==3: print(*dl.pool.procs, flush=True)
""")
    pids = [int(o) for o in p.stdout.readline().split()]
    assert len(pids)==2
    (os.killpg if sig==signal.SIGINT else os.kill)(p.pid, sig)
    out = p.communicate(timeout=20)[0]
    assert gone(pids), 'workers were left behind'
    if sig==signal.SIGINT: assert out.count('Traceback')==1 and 'KeyboardInterrupt' in out, out
    return f'exit status {p.returncode}'

def few_files():
    "64 file descriptors; a loader works, and one too many says so"
    p = program("""
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
with DataLoader(Numbers(), 4, n_workers=2) as dl:
    for _ in range(5): n = len(rows(dl))
print(n)
try: rows(DataLoader(Numbers(), 4, n_workers=64))
except LoaderError as e: print(e)
""")
    out = p.communicate(timeout=20)[0]
    p.wait()
    assert out.startswith('64\n') and 'ulimit' in out, out
    return out.splitlines()[-1]

def no_shared_memory():
    "No room in /dev/shm, then none anywhere: the pipe does it"
    from multiprocessing import heap
    want,dirs = rows(DataLoader(Numbers(), 8, n_workers=0, seed=3)),heap.Arena._dir_candidates
    heap.Arena._dir_candidates = ['/nowhere']
    try:
        with DataLoader(Numbers(), 8, n_workers=2, seed=3) as dl: assert torch.equal(rows(dl), want)
    finally: heap.Arena._dir_candidates = dirs
    ctx,raw = loader.mp.get_context(_fork()),None
    raw = type(ctx).RawArray
    def full(*args): raise OSError(28, 'No space left on device')
    type(ctx).RawArray = full
    try:
        with DataLoader(Numbers(), 8, n_workers=2, seed=3) as dl: assert torch.equal(rows(dl), want)
    finally: type(ctx).RawArray = raw
    return 'the same batches'

def dropped():
    "Loops left early, loaders forgotten: nothing is left running"
    for _ in range(3):
        dl = DataLoader(Numbers(), 4, n_workers=2)
        for b in dl: break
    pids = list(dl.pool.procs)
    del dl,b
    assert gone(pids)

def main():
    "Every fault in turn, a line each"
    checks = [start_methods, killed, stopped, bad_files, flipped, few_files, no_shared_memory, dropped]
    for f in checks:
        if sys.platform=='linux': print(f'{f.__name__}: {f() or "ok"}', flush=True)
    for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL): print(f'the program ends by {sig.name}: {parent_ends(sig)}, no worker left', flush=True)
    assert gone(children()), children()
    print('no process is left')

if __name__=='__main__':
    import check_loader # a fresh process can import what is in a module, and not what is in `__main__`
    check_loader.main()
