"The cache under real faults: whole or not at all, never stale, never without a word"
import os,signal,subprocess,sys,tempfile,time,warnings
from pathlib import Path
import torch
from PIL import Image
from scratchai.files import *
from scratchai.loader import *
from scratchai.cache import *
from scratchai.cache import _key
from check_loader import children,gone,says

def pictures(d, n=40, size=48):
    for i in range(n): Image.effect_noise((size,size), 60).convert('RGB').save(Path(d)/f'{i:03}.jpg')
    return get_image_files(d)

def fresh(fns, cache='memory', **kwargs): return CachedDataset(fns, [0]*len(fns), 32, cache, **kwargs)
def plain(fns): return torch.stack([Dataset(fns, [0]*len(fns), 32)[i][0] for i in range(len(fns))])
def xs(dl): return torch.cat([x for x,_ in dl])

def start_methods(d):
    "The same pixels, filled by workers of every kind, and a complete cache after one epoch"
    fns = pictures(d)
    want = plain(fns)
    for context in ('fork','forkserver','spawn','thread'):
        for cache in ('memory',Path(d)/context):
            ds = fresh(fns, cache)
            with DataLoader(ds, 8, n_workers=2, context=context) as dl:
                assert torch.equal(xs(dl), want) and ds.in_memory, (context, cache)
                assert torch.equal(xs(dl), want)
    assert fresh(fns, Path(d)/'spawn').in_memory

script = '''
import os,sys,time
sys.path.insert(0, {here!r})
import check_cache
check_cache.main.__globals__[{f!r}](*{args!r})
'''
def program(f, *args, **kwargs):
    code = script.format(here=str(Path(__file__).parent), f=f.__name__, args=tuple(map(str, args)))
    return subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kwargs)

class Logged(Dataset):
    "Writes down which pictures it decodes"
    def decode(self, i):
        with open(Path(self.fns.name(i)).parent/'log', 'a') as f: f.write(f'{i} ')
        return super().decode(i)
class Slow(CachedDataset, Logged): pass

def fill_slowly(d, cache, rank=0, world_size=1):
    "Fill half of a cache, say so, and go on when told to"
    fns = get_image_files(d)
    dl = DataLoader(Slow(fns, [0]*len(fns), 32, cache), 4, n_workers=2, rank=int(rank), world_size=int(world_size), seed=1)
    for i,b in enumerate(dl):
        if i==2:
            print('half', *dl.pool.procs, flush=True)
            sys.stdin.readline()
    print('whole', flush=True)

def half(p):
    "Wait until program `p` has half of its cache; the ids of its workers"
    while not (line := p.stdout.readline()).startswith('half'): assert line, 'ended too early'
    return [int(o) for o in line.split()[1:]]

def killed(d):
    "SIGKILL in mid-fill: what is left is no cache, and the next run clears it away"
    fns,cache = pictures(d),Path(d)/'cache'
    for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        p = program(fill_slowly, d, cache)
        workers = half(p)
        p.send_signal(sig)
        p.communicate()
        assert gone(workers), 'workers were left behind'
        assert not list(cache.glob('*.cache')) and len(list(cache.glob('*.part')))==(sig!=signal.SIGINT), sig
    left = list(cache.glob('*.part'))
    (mine := cache/'film.mp4.part').touch()
    for o in (*left,mine): os.utime(o, (0,0))
    ds = fresh(fns, cache)
    assert not ds.in_memory and len(list(cache.glob('*.part')))==2 and mine.exists() and not left[0].exists(), 'another file was cleared away'
    mine.unlink()
    with DataLoader(ds, 8, n_workers=2) as dl: assert torch.equal(xs(dl), plain(fns))
    assert [o.suffix for o in cache.iterdir()]==['.cache']
    return f'{len(left)} half-filled file(s) cleared away'

def two_at_once(d):
    "Two processes, alike or each with its half of the pictures, fill one file: both end well, it is right, and a picture is decoded once"
    fns,counts = pictures(d),[]
    for world_size in (1,2):
        cache,log = Path(d)/f'cache{world_size}',Path(d)/'log'
        log.write_text('')
        ps = [program(fill_slowly, d, cache, o*(world_size-1), world_size) for o in range(2)]
        for p in ps: half(p) # both are filling it now
        assert len(list(cache.iterdir()))==1, list(cache.iterdir())
        outs = [p.communicate('go\n', timeout=120)[0] for p in ps]
        assert all(o.strip().endswith('whole') for o in outs), outs
        assert [o.suffix for o in cache.iterdir()]==['.cache']
        done = log.read_text().split()
        assert set(map(int, done))==set(range(40)), done
        counts.append(len(done))
        ds = Slow(fns, [0]*40, 32, cache)
        assert ds.in_memory and torch.equal(xs(DataLoader(ds, 8, n_workers=0)), plain(fns))
    assert counts[1]<=40+3, counts # the first to end decodes what is missing, if that is less than a batch
    return f'{counts[1]} pictures decoded by two processes with a half each, {counts[0]} by two that were alike'

class Toned(CachedDataset): decoding = 'grey'

def changed(d):
    "A changed file, one that is gone, another size, another decoding: none is served from the old cache"
    fns,cache = pictures(d),Path(d)/'cache'
    def full():
        ds = fresh(fns, cache)
        before = ds.in_memory
        with DataLoader(ds, 8, n_workers=2) as dl: return before,xs(dl)
    assert not full()[0] and full()[0]
    Image.new('RGB', (48,48), 'red').save(fns[3], 'JPEG')
    hit,x = full()
    assert not hit and torch.equal(x, plain(fns)) and x[3,...,0].min()>200
    assert full()[0]
    assert not CachedDataset(fns, [0]*40, 16, cache).in_memory
    assert not fresh(fns[1:], cache).in_memory
    key = Toned(fns, [0]*40, 32, cache).cache.final
    Toned.decoding = 'colour'
    assert Toned(fns, [0]*40, 32, cache).cache.final!=key
    assert torch.equal(fresh(fns, cache)[-2][0], plain(fns)[-2])
    assert not fresh(fns, cache, method='crop').in_memory

def bad(d):
    "A bad file is left out in every epoch, from the cache as well, and named each time"
    fns = pictures(d)
    fns[7].write_bytes(fns[7].read_bytes()[:200])
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        ds = fresh(fns)
        with DataLoader(ds, 8, n_workers=2, skip_bad=True) as dl:
            for _ in range(3):
                assert sum(len(y) for _,y in dl)==39 and [e.index for e in dl.bad]==[7]
        assert ds.in_memory
    return says(lambda: list(DataLoader(ds, 8, n_workers=0)), 'Item 7', '007.jpg', 'cannot be read', err=ItemError)

def small_disk(d):
    "A disk without room is a sentence, before anything is written to it"
    fns = pictures(d)
    disk = Path(d)/'disk'
    disk.mkdir()
    if subprocess.run(['mount','-t','tmpfs','-o','size=16k','none',disk], capture_output=True).returncode: return 'not tried: no right to mount'
    try:
        msg = says(lambda: fresh(fns, disk), 'The cache needs 123 kB', ' kB in ', str(disk), 'name a folder with more room', err=OSError)
        assert not list(disk.iterdir())
    finally: subprocess.run(['umount', disk])
    return msg

def fill_limited(d, cache):
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**4, 10**4))
    try: fresh(get_image_files(d), cache)
    except OSError as e: print(e)

def file_limit(d):
    "The system refuses the file: its reason, and nothing left"
    pictures(d)
    out = program(fill_limited, d, Path(d)/'cache').communicate(timeout=120)[0]
    assert 'The cache needs' in out and 'the system says' in out and 'Traceback' not in out, out
    assert not list((Path(d)/'cache').iterdir())
    return out.splitlines()[-1]

def memory(d):
    "A cache in memory leaves no file anywhere, whatever ends the process"
    fns = pictures(d)
    key = _key(Slow(fns, [0]*len(fns), 32))
    def shm(): return [str(o) for f in ('/dev/shm', tempfile.gettempdir()) if os.path.isdir(f) for o in Path(f).glob(f'{key}*')]
    p = program(fill_slowly, d, 'memory')
    workers = half(p)
    assert shm()==[]
    p.kill()
    p.communicate()
    assert gone(workers)
    fds = len(os.listdir('/proc/self/fd'))
    for _ in range(20): ds = fresh(get_image_files(d))
    del ds
    assert len(os.listdir('/proc/self/fd'))<=fds

def main():
    signal.signal(signal.SIGINT, signal.default_int_handler) # in a background job it may be ignored
    for f in [start_methods, killed, two_at_once, changed, bad, small_disk, file_limit, memory]:
        t = time.time()
        with tempfile.TemporaryDirectory() as d:
            if sys.platform=='linux': print(f'{f.__name__}: {f(d) or "ok"} ({time.time()-t:.1f} s)', flush=True)
    assert gone(children()), children()

if __name__=='__main__':
    import check_cache # a fresh process can import what is in a module, and not what is in `__main__`
    check_cache.main()
