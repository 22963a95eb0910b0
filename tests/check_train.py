"The `scratchai-train` command as a user meets it: a tiny run, and everything that can be wrong with its arguments."
import os,shutil,signal,subprocess,sys,tempfile,time
from pathlib import Path

from PIL import Image

signal.signal(signal.SIGINT, signal.default_int_handler) # in a background job it may be ignored
tmp = Path(tempfile.mkdtemp(prefix='scratchai-check-'))
exe = Path(sys.executable).parent/'scratchai-train'
env = dict(os.environ, SCRATCHAI_HOME=str(tmp/'home'), MPLBACKEND='agg')

def run(*args):
    "Run the command in an empty folder: its status, output, errors, and the files it left"
    cwd = Path(tempfile.mkdtemp(dir=tmp))
    r = subprocess.run([str(exe), *map(str, args)], cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
    return r.returncode, r.stdout, r.stderr, sorted(str(o.relative_to(cwd)) for o in cwd.rglob('*') if o.is_file())

def folder(name, **classes):
    "A folder in Imagenette's layout, `classes` giving the number of pictures of each `split_class`"
    for k,n in classes.items():
        d = tmp/name/k.replace('_', '/')
        d.mkdir(parents=True)
        for i in range(n): Image.new('RGB', (40,30), (i*40%256, 255*('dog' in k), 80)).save(d/f'{i}.JPEG')
    return tmp/name

def refused(*args, says):
    "The command ends with status 2, one sentence that `says` what is wrong, and nothing written"
    status,out,err,files = run(*args)
    assert status==2, (args, status, out, err)
    assert says in err and 'Traceback' not in err, (args, err)
    assert len(err.strip().splitlines())==1, (args, err)
    assert not files and not (tmp/'home').exists(), (args, files)
    print('ok', err.strip())

def main():
    good = folder('good', train_cat=6, train_dog=6, val_cat=3, val_dog=3)
    refused(tmp/'nowhere', says='There is no folder')
    refused(good/'train/cat/0.JPEG', says='is a file')
    (tmp/'empty').mkdir()
    refused(tmp/'empty', says='no folder `train`')
    refused(folder('bare', train_cat=0), says='no folder `val`')
    refused(folder('hollow', train_cat=3, train_dog=0, val_cat=1, val_dog=1), says='train/dog` holds no pictures')
    refused(folder('late', train_cat=3, val_cat=1, val_dog=1), says='`dog` is in')
    refused('--size', 0, says='--size is 0')
    refused('--bs', 0, says='--bs is 0')
    refused('--epochs', 0, says='--epochs is 0')
    refused('--lr', 'nan', says='--lr is nan')
    refused('--n-workers', -1, says='--n-workers is -1')
    refused('--arch', 'resnet99', says='choose one of simple_cnn')
    refused(good, '--out', good, says='already holds files')

    status,out,err,files = run(good, '--epochs', 2, '--bs', 4, '--size', 32)
    assert status==0, (out, err)
    assert files==['scratchai-out/1/report.png', 'scratchai-out/1/weights.safetensors'], files
    for says in ('12 training and 6 validation pictures of 2 classes', 'train_loss', 'Accuracy: ', 'Weights: ', 'Report: '): assert says in out, (says, out)
    rows = [l for l in out.splitlines() if l[:1] in ('0','1')]
    assert len(rows)==2 and '\r' not in out, out  # plain lines where the output is no terminal
    print('ok', rows[-1])

    same = [run(good, '--epochs', 1, '--bs', 4, '--size', 32, '--seed', 3, '--n-workers', n)[1].splitlines()[3].split()[:4] for n in (0,2)]
    assert same[0]==same[1], same  # the same seed, the same numbers, whatever the number of workers
    print('ok the same with 0 and 2 workers:', *same[0])

    cwd = Path(tempfile.mkdtemp(dir=tmp))
    p = subprocess.Popen([str(exe), str(good), '--epochs', '5000', '--bs', '4', '--size', '32'], cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not p.stdout.readline().startswith('0'): assert p.poll() is None, p.stderr.read()
    os.killpg(p.pid, signal.SIGINT)
    err = p.communicate(timeout=60)[1]
    assert p.returncode==130 and 'stopped' in err and 'Traceback' not in err and not list(cwd.rglob('*.*')), (p.returncode, err)
    try: os.killpg(p.pid, 0)
    except ProcessLookupError: print('ok', err.strip())
    else: raise AssertionError('Ctrl-C left a process behind')

if __name__=='__main__':
    try: main()
    finally: shutil.rmtree(tmp)
