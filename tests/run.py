"The whole test suite: every chapter as a test, then pytest. Words choose: `python tests/run.py losses` runs the chapters and test files with that in their names. Ends with a line `N passed, N failed`."
import os,re,shutil,signal,subprocess,sys,tempfile,time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

root = Path(__file__).resolve().parent.parent
tmp = Path(tempfile.mkdtemp(prefix='scratchai-test-'))
modules = [f.stem for f in (root/'scratchai').glob('*.py') if f.stem!='_modidx']
# Nothing outside the temporary folder is written; a deprecation that our code causes is an error; two run side by side, on one thread each
env = dict(os.environ, SCRATCHAI_HOME=str(tmp/'home'), MPLBACKEND='agg', MPLCONFIGDIR=str(tmp/'mpl'), OMP_NUM_THREADS='1', OMP_WAIT_POLICY='passive',
           PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", PYTHONWARNINGS=','.join(f'error::DeprecationWarning:scratchai.{m}' for m in modules))
for k in ('PYTHONPATH', 'MAKEFLAGS', 'MAKELEVEL'): env.pop(k, None)
signal.signal(signal.SIGINT, signal.default_int_handler) # a shell has its background jobs ignore Ctrl-C, and what they start inherits that

def chapter(nb:Path)->bool:
    "Run a chapter from top to bottom, and say how it ended"
    start = time.time()
    r = subprocess.run(['nbdev-test', str(nb.relative_to(root))], cwd=root, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(f'{nb.name:24} {time.time()-start:6.1f} s  {"ok" if r.returncode==0 else "FAILED"+chr(10)+r.stdout}', flush=True)
    return r.returncode==0

def pytest(*args)->tuple:
    "Run pytest; how many passed, and how many failed"
    p = subprocess.Popen([sys.executable, '-m', 'pytest', '-q', '-n', '2', '--durations=5', *args], cwd=root, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    lines = []
    for line in p.stdout:
        print(line, end='', flush=True)
        lines.append(line)
    status,last = p.wait(),next((o for o in reversed(lines) if re.search(r' in [\d.]+s', o)), '')
    n = {k: int(v) for v,k in re.findall(r'(\d+) (passed|failed|error)', last)}
    bad = n.get('failed', 0)+n.get('error', 0)
    return n.get('passed', 0),bad or int(status not in (0, 5)) # 5: no test was chosen

def main(words):
    chapters = [f for f in sorted((root/'nbs').glob('*.ipynb')) if not words or any(o in f.stem for o in words)]
    tests = [str(f) for f in sorted((root/'tests').glob('test_*.py')) if not words or any(o in f.stem for o in words)]
    tests += [o for o in words if '::' in o]
    subprocess.run([sys.executable, '-c', 'from scratchai.doodles import doodles; doodles()'], cwd=root, env=env, check=True) # drawn once, for all
    with ThreadPoolExecutor(2) as ex: results = list(ex.map(chapter, chapters))
    passed,failed = pytest(*tests) if tests else (0,0)
    passed,failed = passed+sum(results),failed+len(results)-sum(results)
    print(f'{passed} passed, {failed} failed')
    return failed or not passed

if __name__=='__main__':
    try: sys.exit(bool(main(sys.argv[1:])))
    finally: shutil.rmtree(tmp, ignore_errors=True)
