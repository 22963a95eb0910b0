"What the tests share. Nothing outside a temporary folder is written."
import gc,os,signal,subprocess,sys,time
from pathlib import Path

import pytest

os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('OMP_WAIT_POLICY', 'passive')
os.environ.setdefault('MPLBACKEND', 'agg')
signal.signal(signal.SIGINT, signal.default_int_handler) # a shell has its background jobs ignore Ctrl-C, and what they start inherits that

@pytest.fixture(scope='session', autouse=True)
def home(tmp_path_factory):
    "`$SCRATCHAI_HOME`, as `make test` has set it, or a temporary folder"
    if 'SCRATCHAI_HOME' not in os.environ: os.environ['SCRATCHAI_HOME'] = str(tmp_path_factory.mktemp('home'))
    return Path(os.environ['SCRATCHAI_HOME'])

@pytest.fixture(scope='session')
def doodles_path(home):
    "The folder of the built-in pictures, drawn once"
    from scratchai.doodles import doodles
    return doodles()

@pytest.fixture(autouse=True)
def seeded():
    "Every test begins with the same seeds, and leaves no figure open"
    from scratchai.core import set_seed
    set_seed(42)
    yield
    if 'matplotlib.pyplot' in sys.modules: sys.modules['matplotlib.pyplot'].close('all')

@pytest.fixture
def pictures(tmp_path):
    "`pictures(train_cat=6, val_cat=3)` makes a folder in Imagenette's layout, one class and split a keyword"
    from PIL import Image
    def _make(name='pictures', size=(40,30), **classes):
        for k,n in classes.items():
            d = tmp_path/name/k.replace('_', '/')
            d.mkdir(parents=True, exist_ok=True)
            for i in range(n): Image.new('RGB', size, (i*40%256, 255*('dog' in k), 80)).save(d/f'{i}.JPEG')
        return tmp_path/name
    return _make

def children(pid=None)->list:
    "Process ids of the children of `pid` (this process's own), Python's resource tracker and fork server apart"
    out = subprocess.run(['ps','-eo','pid,ppid,stat,args'], capture_output=True, text=True).stdout.splitlines()[1:]
    rows = [o.split(None, 3) for o in out]
    return [int(p) for p,pp,st,a in rows if int(pp)==(pid or os.getpid()) and 'Z' not in st and 'ps -eo' not in a
        and 'resource_tracker' not in a and 'forkserver' not in a]

def gone(pids, limit=30)->bool:
    "Have all of `pids` ended within `limit` seconds?"
    def alive(p):
        try: return Path(f'/proc/{p}/stat').read_text().rsplit(')', 1)[1].split()[0]!='Z'
        except OSError: return False
    end = time.monotonic()+limit
    while any(map(alive, pids)) and time.monotonic()<end: time.sleep(.05)
    return not any(map(alive, pids))

def until(f, limit=60):
    "Wait until `f()` holds, and return it"
    end = time.monotonic()+limit
    while not (res := f()):
        assert time.monotonic()<end, f'{f} did not come true within {limit} s'
        time.sleep(.02)
    return res
