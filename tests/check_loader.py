"The loader under real faults: each must end in its sentence, in seconds, and leave no process behind"
import io,os,random,resource,signal,subprocess,sys,tarfile,tempfile,threading,time,warnings
from http.server import BaseHTTPRequestHandler,ThreadingHTTPServer
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
    "Process ids of the children of `pid`, Python's own resource tracker and server of forks apart: those end with the program"
    out = subprocess.run(['ps','-eo','pid,ppid,stat,args'], capture_output=True, text=True).stdout.splitlines()[1:]
    rows = [o.split(None, 3) for o in out]
    return [int(p) for p,pp,st,a in rows if int(pp)==(pid or os.getpid()) and 'Z' not in st and 'ps -eo' not in a
        and 'resource_tracker' not in a and 'forkserver' not in a]

def gone(pids, limit=30):
    "Have all of `pids` ended within `limit` seconds?"
    end = time.monotonic()+limit
    def alive(p):
        try: return Path(f'/proc/{p}/stat').read_text().rsplit(')', 1)[1].split()[0]!='Z'
        except OSError: return False
    while any(map(alive, pids)) and time.monotonic()<end: time.sleep(.05)
    return not any(map(alive, pids))

def says(f, *words, err=LoaderError, limit=60):
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

class Noisy:
    "Items that draw from all three generators"
    random = True
    def __len__(self): return 96
    def __getitem__(self, i): return torch.rand(8)+i/96+np.random.rand()*random.random(),i%3

def trained(**kwargs):
    "The weights of a small model after three epochs on random items"
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(8,16), torch.nn.ReLU(), torch.nn.Linear(16,3))
    opt = torch.optim.SGD(model.parameters(), lr=.1, momentum=.9)
    with DataLoader(Noisy(), 16, shuffle=True, seed=5, **kwargs) as dl:
        for _ in range(3):
            for xb,yb in dl:
                torch.nn.functional.cross_entropy(model(xb.float()), yb).backward()
                opt.step()
                opt.zero_grad()
    return torch.cat([p.detach().flatten() for p in model.parameters()])

def weights():
    "The same trained weights, bitwise, for any number of workers and every way to start them"
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    want = trained(n_workers=0)
    try:
        for context in ('fork','forkserver','spawn','thread'):
            for n_workers in (1,2,4) if context in ('fork','thread') else (2,):
                assert torch.equal(trained(n_workers=n_workers, context=context), want), (context, n_workers)
    finally: torch.set_num_threads(n)
    return f'{len(want)} numbers, {want.abs().sum():.4f}'

class Batchable:
    "A data set in PyTorch's form that can give many items at once"
    def __len__(self): return 30
    def __getitem__(self, i): return torch.tensor([i]),i
    def __getitems__(self, idxs): return [self[i] for i in idxs]

def torch_datasets():
    "What PyTorch's own data sets hold comes out as from PyTorch's loader"
    from torch.utils.data import ConcatDataset,DataLoader as TorchLoader,Subset,TensorDataset
    whole = TensorDataset(torch.randn(50,3), torch.arange(50))
    for ds in (whole, Subset(whole, range(5,45)), ConcatDataset([whole,whole]), Batchable(), Subset(Batchable(), [3,1,2])):
        want = [tuple(o) for o in TorchLoader(ds, 8)]
        for n_workers in (0,2):
            with DataLoader(ds, 8, n_workers=n_workers) as dl:
                got = list(dl)
                assert len(got)==len(want) and all(torch.equal(a, b) for g,w in zip(got, want) for a,b in zip(g, w)), type(ds)

class Named(Dataset):
    "Touches the name of each of its files, and reads none"
    random = False
    def decode(self, i): return torch.full((8,8,3), len(self.fns.name(i))%256, dtype=torch.uint8)
class Listed(Named):
    "The same with an ordinary list of paths"
    def __init__(self, fns): self.paths,self.y,self.tfm,self.random = [Path(o) for o in fns],np.zeros(len(fns), dtype=np.int64),None,False
    def decode(self, i): return torch.full((8,8,3), len(str(self.paths[i]))%256, dtype=torch.uint8)

def own(pid):
    "Megabytes that process `pid` alone has written; what it only reads is shared, or not, with programs that come and go"
    lines = Path(f'/proc/{pid}/smaps_rollup').read_text().splitlines()
    return sum(int(o.split()[1]) for o in lines if o.startswith('Private_Dirty'))/1e3

def growth(ds, epochs=20, since=3):
    "Megabytes that the parent and the larger worker have gained between epoch `since` and the last of `epochs` with a slow consumer"
    with DataLoader(ds, 250, shuffle=True, n_workers=2, seed=1, world_size=20) as dl:
        for epoch in range(epochs):
            for b in dl: time.sleep(.001)
            now = [own(o) for o in (os.getpid(),*dl.pool.procs)]
            if epoch==since: first = now # by then every buffer that is kept has been made
    gain = [b-a for a,b in zip(first, now)]
    return gain[0],max(gain[1:])

def memory():
    "200,000 files, twenty epochs (of 10,000 each), a slow consumer: nothing grows; a list of paths in their place does, in the workers"
    fns = [f'/data/pictures/train/n{i%1000:08}/n{i%1000:08}_{i}.JPEG' for i in range(200_000)]
    parent,worker = growth(Named(fns, labels=[0]*len(fns)))
    assert parent<8 and worker<8, (parent, worker)
    _,listed = growth(Listed(fns), since=0)
    assert listed>max(2*worker, 12), (listed, worker)
    return f'parent {parent:+.1f} MB, worker {worker:+.1f} MB; a worker with a list of paths {listed:+.1f} MB'

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
    dl = DataLoader(Numbers(wait=.02), 4, n_workers=2)
    it = iter(dl)
    next(it)
    dl.timeout = 2 # from the second batch on: the first has to wait for the workers to start
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

def group(pgid):
    "All processes of a process group, but for those that wait to be reaped"
    rows = subprocess.run(['ps','-eo','pid,pgid,stat'], capture_output=True, text=True).stdout.splitlines()[1:]
    return [int(p) for p,g,st in map(str.split, rows) if int(g)==pgid and 'Z' not in st]

class Who(Numbers):
    "Items that say which process made them"
    def __getitem__(self, i): return super().__getitem__(i)[0],os.getpid()

def parent_ends(sig, context='fork'):
    "The program ends by `sig` in mid-epoch, when each of its workers has made a batch"
    p = program(f"""
if __name__=='__main__':
    import check_loader
    dl,seen = DataLoader(check_loader.Who(10**6, .01), 4, n_workers=2, context={context!r}),set()
    for x,y in dl:
        if len(seen)<2 and len(seen := seen|set(y.tolist()))==2: print(*dl.pool.procs, flush=True)
""")
    pids = [int(o) for o in p.stdout.readline().split()]
    assert len(pids)==2, p.communicate()
    pids = group(p.pid) # the server of forks and the resource tracker too
    assert len(pids)>=(5 if context=='forkserver' else 3), pids
    (os.killpg if sig==signal.SIGINT else os.kill)(p.pid, sig)
    out = p.communicate(timeout=120)[0]
    assert gone(pids), 'processes were left behind'
    if sig==signal.SIGINT: assert out.count('Traceback')==1 and 'KeyboardInterrupt' in out, out
    return f'exit status {p.returncode}'

class Slowly(BaseHTTPRequestHandler):
    "Sends what it has in pieces, and waits at the fourth until it may go on; knows ranges"
    protocol_version,data,log,go = 'HTTP/1.1',b'',[],threading.Event()
    def log_message(self, *args): pass
    def do_GET(self):
        start = int((self.headers.get('Range') or 'bytes=0-')[6:-1])
        self.log.append(start)
        self.send_response(206 if start else 200)
        size = len(self.data)
        for k,v in {'ETag':'"1"', 'Content-Length':size-start, 'Content-Range':f'bytes {start}-{size-1}/{size}'}.items(): self.send_header(k, v)
        self.end_headers()
        try:
            for i in range(start, len(self.data), 2**17):
                if i==2**19: self.go.wait(120)
                self.wfile.write(self.data[i:i+2**17])
        except OSError: pass
        self.close_connection = True

def archive(n=20, size=100_000):
    buf = io.BytesIO()
    with tarfile.open(fileobj=buf, mode='w') as t:
        for i in range(n):
            m = tarfile.TarInfo(f'pics/{i:05}.bin')
            m.size = size
            t.addfile(m, io.BytesIO(bytes([i%256])*size))
    return buf.getvalue()

def fetch(url, home, stop=''):
    "`untar_data` in a program of its own, which may stop at the 60th member"
    return program(f"""
if {stop!r}:
    import tarfile
    extract,members = tarfile.TarFile.extract,[]
    def slow(*args, **kwargs):
        members.append(1)
        if len(members)==60: time.sleep(120)
        return extract(*args, **kwargs)
    tarfile.TarFile.extract = slow
print('go', flush=True)
print(len(list(untar_data({url!r}, progress=False).iterdir())), flush=True)
""", env=dict(os.environ, SCRATCHAI_HOME=str(home)))

def until(f, limit=120):
    end = time.monotonic()+limit
    while not f():
        assert time.monotonic()<end, 'it did not come about'
        time.sleep(.005)

def inside(home): return sorted(o.name for o in (Path(home)/'data').iterdir()) if (Path(home)/'data').exists() else []

def downloads():
    "Ctrl-C in mid-download and in mid-extraction, two programs at once, a full disk: nothing is half there, and the next call goes on"
    Slowly.data = archive()
    server = ThreadingHTTPServer(('127.0.0.1', 0), Slowly)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f'http://127.0.0.1:{server.server_port}/pics.tar'
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)
        # Ctrl-C in mid-download
        p,part = fetch(url, d/'a'),d/'a/archives/pics.tar.part'
        until(lambda: part.exists() and part.stat().st_size>=2**18)
        p.send_signal(signal.SIGINT)
        out = p.communicate(timeout=120)[0]
        Slowly.go.set()
        assert 'KeyboardInterrupt' in out and inside(d/'a')==[], (out, inside(d/'a'))
        n = part.stat().st_size
        Slowly.log.clear()
        assert fetch(url, d/'a').communicate(timeout=120)[0].split()==['go','20'] and Slowly.log==[n] and inside(d/'a')==['pics']
        # two programs at once
        Slowly.log.clear()
        outs = [o.communicate(timeout=120)[0].split() for o in [fetch(url, d/'b') for _ in range(2)]]
        assert outs==[['go','20']]*2 and Slowly.log==[0], (outs, Slowly.log)
        # Ctrl-C and SIGKILL in mid-extraction, of an archive on the disk
        many = d/'many.tar'
        many.write_bytes(archive(600, 10))
        for sig,home in ((signal.SIGINT, d/'c'), (signal.SIGKILL, d/'e')):
            p = fetch(str(many), home, stop='at a member')
            until(lambda: len(list((home/'data').glob('.many.*.tmp/all/pics/0*')))==59)
            p.send_signal(sig)
            p.communicate(timeout=120)
            assert not (home/'data/many').exists() and (sig!=signal.SIGINT or inside(home)==[]), inside(home)
            if sig==signal.SIGKILL: assert fetch(str(many), home).communicate(timeout=120)[0].split()==["go","600"] and inside(home)==['many']
        full = full_disk(url, d)
    server.shutdown()
    return f'went on from byte {n}; one download for two programs; {full}'

def full_disk(url, d):
    disk = d/'disk'
    disk.mkdir()
    if subprocess.run(['mount','-t','tmpfs','-o','size=1m','none',disk], capture_output=True).returncode: return 'full disk not tried: no right to mount'
    try:
        out = fetch(url, disk).communicate(timeout=120)[0].splitlines()[-1]
        assert 'No space left' in out and 'SCRATCHAI_HOME' in out and inside(disk)==[], out
        subprocess.run(['mount','-o','remount,size=3m',disk], check=True)
        unpacked = fetch(url, disk).communicate(timeout=120)[0].splitlines()[-1]
        assert 'was not unpacked, and nothing was left behind' in unpacked and inside(disk)==[], unpacked
    finally: subprocess.run(['umount',disk])
    return out

def small_shm():
    "A /dev/shm of 64 KB, really"
    if subprocess.run(['unshare','-m','true'], capture_output=True).returncode: return 'not tried: no right to unshare'
    body = """
want = rows(DataLoader(Wide(), 8, n_workers=0, seed=3))
with DataLoader(Wide(), 8, n_workers=2, seed=3) as dl: print(torch.equal(rows(dl), want))
print(os.statvfs('/dev/shm').f_blocks*os.statvfs('/dev/shm').f_frsize)
"""
    cmd = ['unshare','-m','sh','-c','mount -t tmpfs -o size=64k none /dev/shm && exec "$@"','-',sys.executable,'-c',script.format(here=str(Path(__file__).parent))+body]
    out = subprocess.run(cmd, capture_output=True, text=True, timeout=120)
    assert out.stdout.split()==['True','65536'], out
    return 'the same batches'

class Wide(Numbers):
    def __getitem__(self, i): return torch.full((40,40,3), i, dtype=torch.uint8),i

def one_loader():
    "A `DataLoaders` without a loader to validate with"
    from scratchai.data import DataLoaders
    return says(lambda: DataLoaders(DataLoader(Numbers(), n_workers=0), device='cpu').valid, 'no loader to validate with', err=AttributeError)

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
    out = p.communicate(timeout=120)[0]
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

def hung_thread():
    "A thread that hangs does not keep the program from ending"
    p = program("""
try: rows(DataLoader(Numbers(8, 300), 4, n_workers=2, context='thread', timeout=1))
except LoaderError as e: print(e)
""")
    out = p.communicate(timeout=120)[0]
    assert 'no batch came within 1 seconds' in out and p.returncode==0, out

def no_guard():
    "A script whose work is not under `if __name__=='__main__':`"
    with tempfile.TemporaryDirectory() as d:
        (Path(d)/'work.py').write_text(script.format(here=str(Path(__file__).parent))+"""
import check_loader
try: rows(DataLoader(check_loader.Numbers(8), 4, n_workers=2, context='spawn'))
except LoaderError as e: print('said:', e)
""")
        out = subprocess.run([sys.executable,Path(d)/'work.py'], capture_output=True, text=True, timeout=120).stdout
    assert "under `if __name__=='__main__':`" in out, out

def forked():
    "A loader in a process that was forked after its workers started; a daemon, which may start none"
    dl = DataLoader(Numbers(), 8, n_workers=2, seed=3)
    want,pids = rows(dl),list(dl.pool.procs)
    def in_child(q):
        try: q.put((rows(dl)[:,0].tolist(), list(dl.pool.procs)))
        except LoaderError as e: q.put(str(e))
        dl.close()
    ctx = loader.mp.get_context('fork')
    for daemon in (False,True):
        q = ctx.SimpleQueue()
        p = ctx.Process(target=in_child, args=(q,), daemon=daemon)
        p.start()
        res = q.get()
        p.join(10)
        assert 'is a daemon' in res if daemon else res[0]==list(range(64)) and not set(res[1])&set(pids), res
    assert torch.equal(rows(dl)[:,0], want[:,0]) and list(dl.pool.procs)==pids
    dl.close()

def killed_check():
    "A worker of `verify_images` is killed"
    with tempfile.TemporaryDirectory() as d:
        os.mkfifo(Path(d)/'a.jpg') # reading it waits for ever
        before = {o.pid for o in loader.mp.active_children()}
        def born(): return [o.pid for o in loader.mp.active_children() if o.pid not in before]
        def kill():
            until(born)
            os.kill(born()[0], signal.SIGKILL)
        threading.Thread(target=kill).start()
        return says(lambda: verify_images([Path(d)/'a.jpg'], n_workers=1, progress=False), 'The check stopped')

def main():
    "Every fault in turn, a line each"
    signal.signal(signal.SIGINT, signal.default_int_handler) # in a background job it may be ignored
    checks = [weights, torch_datasets, start_methods, memory, killed, stopped, bad_files, flipped, few_files, no_shared_memory, small_shm, dropped,
        hung_thread, no_guard, forked, killed_check, downloads, one_loader]
    for f in checks:
        t = time.monotonic()
        if sys.platform=='linux': print(f'{f.__name__}: {f() or "ok"} ({time.monotonic()-t:.1f} s)', flush=True)
    for context in ('fork','forkserver','spawn'):
        for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            print(f'the program ends by {sig.name} ({context}): {parent_ends(sig, context)}, no process left', flush=True)
    assert gone(children()), children()
    print('no process is left')

if __name__=='__main__':
    import check_loader # a fresh process can import what is in a module, and not what is in `__main__`
    check_loader.main()
