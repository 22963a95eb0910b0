"The road on one page: a file for programs without PyTorch"
from importlib.util import find_spec
from unittest.mock import patch as mock_patch

import numpy as np,pytest,torch
from PIL import Image

from scratchai.data import *
from scratchai.block import *
from scratchai.augment import *
from scratchai.crops import *
from scratchai.export import *
from scratchai.layers import *
from scratchai.losses import *
from scratchai.module import *
from scratchai.resnet import *
from scratchai.learner import *
from scratchai.recorder import *
from scratchai.imagenette import *

@pytest.fixture
def files(tmp_path):
    "Pictures of noise, two classes"
    rng,res = np.random.RandomState(1),[]
    for i in range(9):
        f = tmp_path/('cat' if i%2 else 'dog')/f'{i}.png'
        f.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.randint(0, 255, (30,40,3), dtype=np.uint8)).save(f)
        res.append(f)
    return res

def block_dls(files, get_y=lambda o: o.parent.name, block=CategoryBlock, size=(32,48), batch_tfms=Normalize.from_stats(*imagenet_stats)):
    return DataBlock((ImageBlock,block), get_y=get_y, item_tfms=Resize(size), batch_tfms=batch_tfms,
        splitter=lambda o: (list(range(2)), list(range(2, len(o))))).dataloaders(files, bs=4, num_workers=0, device='cpu')

def same(learn, file, size):
    "What onnxruntime says of batches of 1, 5 and 7 pictures, and what we say"
    import onnxruntime
    session = onnxruntime.InferenceSession(str(file))
    x,preds,_ = learn.get_preds(with_input=True)
    pictures = learn.dls.valid.decode((x,))[0].as_subclass(torch.Tensor) # normalised no more
    assert [o.shape for o in session.get_inputs()]==[['n',3,*size]] and 0<=pictures.min() and pictures.max()<=1
    for n in (1,5,7):
        got, = session.run(None, {'pictures':pictures[:n].numpy()})
        assert torch.allclose(torch.tensor(got), preds[:n], atol=1e-4), (n, got, preds[:n])

needs = pytest.mark.skipif(not all(map(find_spec, ('onnx','onnxscript','onnxruntime'))),
    reason='a package is not installed: `pip install onnx onnxscript onnxruntime`')

@needs
@pytest.mark.slow
@pytest.mark.parametrize('arch', [simple_cnn, resnet18, xresnet18], ids=lambda o: o.__name__)
def test_onnx(files, tmp_path, arch):
    "The same probabilities, for any number of pictures; the learner is as it was"
    learn = Learner(block_dls(files), arch(n_out=2), path=tmp_path)
    with learn.no_logging(), learn.no_bar(): learn.fit(1, 1e-3)
    learn.model.train()
    before = {k: v.clone() for k,v in learn.model.state_dict().items()}
    file = learn.to_onnx('sub/model.onnx')
    assert file==tmp_path/'sub/model.onnx' and [o.name for o in file.parent.iterdir()]==['model.onnx']
    assert learn.model.training and all(torch.equal(v, before[k]) for k,v in learn.model.state_dict().items())
    same(learn, file, (32,48))

@needs
@pytest.mark.slow
def test_onnx_of_other_learners(files, tmp_path, pictures, capfd):
    "One that was loaded; another loss; no normalisation; hand-made loaders; a batch that is given; a model of `torch.nn`; without a word"
    learn = Learner(block_dls(files, lambda o: [o.parent.name,'pet'], MultiCategoryBlock, (16,16), None), simple_cnn(3), path=tmp_path)
    same(learn, learn.to_onnx('several.onnx'), (16,16))
    learn.export()
    load_learner(tmp_path/'export.pkl').to_onnx('again.onnx')
    same(learn, tmp_path/'again.onnx', (16,16))
    hand = Learner(folder_dls(pictures(train_cat=4, train_dog=4, val_cat=4, val_dog=3), size=(16,21), bs=4, n_workers=0, device='cpu'), simple_cnn(2), path=tmp_path)
    same(hand, hand.to_onnx('hand.onnx'), (16,21))
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    x,file = torch.rand(1,1,8,8),Learner(DataLoaders([], [], device='cpu'), net, mse, path=tmp_path).to_onnx('net.onnx', xb=torch.rand(1,1,8,8))
    import onnxruntime
    got, = onnxruntime.InferenceSession(str(file)).run(None, {'pictures':x.numpy()})
    assert torch.allclose(torch.tensor(got), net(x), atol=1e-4)
    assert capfd.readouterr()==('','')

@pytest.mark.parametrize('lost', ['onnx','onnxscript'])
def test_onnx_is_missing(files, tmp_path, lost):
    learn = Learner(block_dls(files), simple_cnn(2), path=tmp_path)
    with mock_patch('scratchai.imagenette.find_spec', lambda o: None if o==lost else 1), pytest.raises(ImportError, match=f'`to_onnx` needs .*pip install {lost}`'):
        learn.to_onnx('model.onnx')
    assert not (tmp_path/'model.onnx').exists()
