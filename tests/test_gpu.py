"What only a GPU can show. Without one, all of it is skipped."
from contextlib import nullcontext
from functools import partial

import pytest,torch,torch.nn as nn
from fastcore.all import NS,noop
from scratchai.core import default_device,no_random,set_seed,to_device
from scratchai.data import DataLoader,Dataset,Normalize,ToFloat,folder_dls,get_image_files,imagenet_stats,parent_label
from scratchai.layers import simple_cnn
from scratchai.learner import Callback,Learner,synth_dls
from scratchai.losses import accuracy,cross_entropy,mse
from scratchai.optimizer import SGD,Adam
import scratchai.fused,scratchai.precision,scratchai.recorder,scratchai.schedule,scratchai.tracker # each adds methods
from scratchai.optimizers import OptimWrapper

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no GPU')

def batches(n=8, bs=32): return [(torch.randn(bs,3,32,32), torch.randint(10, (bs,))) for _ in range(n)]

def learner(device='cuda', opt_func=Adam, data=None, **kwargs):
    set_seed(42)
    data = data or batches()
    learn = Learner(NS(train=data, valid=data[:2], device=device), simple_cnn(), cross_entropy, opt_func, lr=1e-3, **kwargs)
    learn.logger = noop
    return learn

def weights(m): return torch.cat([p.detach().flatten().cpu() for p in m.parameters()])

def test_workers_fill_pinned_batches_that_arrive_on_the_gpu(doodles_path):
    dls = folder_dls(doodles_path, size=64, bs=64, n_workers=2)
    x,y = next(iter(dls.train))
    assert (x.device.type, y.device.type, x.dtype, x.shape) == ('cuda', 'cuda', torch.float32, (64,3,64,64))
    ds = Dataset(get_image_files(doodles_path/'valid' if (doodles_path/'valid').exists() else doodles_path/'val'), parent_label, 64)
    with DataLoader(ds, 64, n_workers=2, seed=1, pin_memory=True) as pinned, DataLoader(ds, 64, n_workers=0, seed=1) as plain:
        for (a,_),(b,_) in zip(pinned, plain): assert a.is_pinned() and torch.equal(a, b)
    for dl in (dls.train, dls.valid): dl.close()

def test_it_learns_pictures(doodles_path):
    dls = folder_dls(doodles_path, size=64, bs=32)
    set_seed(42)
    learn = Learner(dls, simple_cnn(dls.c), metrics=accuracy)
    with learn.no_logging(): learn.fit_one_cycle(8, 1e-2)
    assert next(iter(learn.model.parameters())).is_cuda and learn.history[-1]['accuracy']>0.8
    for dl in (dls.train, dls.valid): dl.close()

@pytest.mark.parametrize('opt_func', [partial(SGD, mom=0.9), Adam])
def test_a_fit_is_that_of_the_cpu(opt_func):
    "To rounding, which Adam blows up where a gradient is nearly 0: so the losses are compared"
    a,b = learner('cpu', opt_func),learner('cuda', opt_func)
    for o in (a,b): o.fit(2)
    assert torch.allclose(torch.tensor(a.recorder.losses), torch.tensor(b.recorder.losses), atol=1e-3)

def test_lr_find_leaves_no_trace():
    def fitted(search):
        learn = learner()
        learn.model = nn.Sequential(nn.Flatten(), nn.Linear(3*32*32, 32), nn.Dropout(0.5), nn.Linear(32, 10)).cuda() # no atomic sums
        if search: learn.lr_find(num_it=10, show_plot=False)
        learn.fit(1)
        return weights(learn.model)
    assert torch.equal(fitted(False), fitted(True))

def test_no_random_puts_the_gpus_generator_back():
    torch.rand(1, device='cuda')
    torch.cuda.manual_seed(1)
    want = torch.rand(3, device='cuda')
    torch.cuda.manual_seed(1)
    with no_random(7): torch.rand(5, device='cuda')
    assert torch.equal(torch.rand(3, device='cuda'), want)

@pytest.mark.parametrize('mk', [partial(SGD, lr=1e-2, mom=0.9), partial(Adam, lr=1e-3)])
def test_a_gpu_has_no_compiled_step(mk):
    "It says so, and goes on without"
    set_seed(1)
    ps = [torch.randn(s, device='cuda').requires_grad_() for s in ((64,32,3,3), (64,), (10,64), (1,))]
    qs = [p.detach().clone().requires_grad_() for p in ps]
    a,b = mk(ps),mk(qs).compile()
    for i in range(4):
        for p,q in zip(ps, qs): p.grad = q.grad = torch.randn_like(p)
        a.step()
        with (pytest.warns(UserWarning, match='no kernels for torch.float32 on cuda') if i==1 else nullcontext()): b.step()
    for p,q in zip(ps, qs): assert torch.allclose(p, q, atol=1e-5)

@pytest.mark.parametrize('kw', [dict(fused=True), dict(capturable=True), {}])
def test_state_saved_on_a_cpu_goes_on_on_a_gpu(kw):
    "For ours, and for an optimizer of PyTorch that is wrapped"
    def opt(device, cls, **kwargs):
        set_seed(2)
        m = nn.Linear(4,2).to(device)
        o = cls(list(m.parameters()), **kwargs)
        o.set_names(m.named_parameters())
        return m,o
    def step(m, o):
        for i,p in enumerate(m.parameters()): p.grad = torch.full_like(p, 0.1*(i+1))
        o.step()
    for cls,here,there in ((Adam, dict(lr=1e-2), dict(lr=1e-2)), (OptimWrapper, dict(opt=torch.optim.AdamW, lr=1e-2), dict(opt=torch.optim.AdamW, lr=1e-2, **kw))):
        (m,o),(n,p) = opt('cpu', cls, **here),opt('cuda', cls, **there)
        for _ in range(3): step(m, o)
        n.load_state_dict(m.state_dict())
        p.load_state_dict(o.state_dict(), strict=False)
        step(m, o), step(n, p)
        assert torch.allclose(weights(m), weights(n), atol=1e-5), (cls, kw)

def test_saved_on_a_gpu_loaded_on_a_cpu(tmp_path):
    a = learner(path=tmp_path)
    a.fit(1)
    a.save('model')
    b = learner('cpu', path=tmp_path)
    b.load('model')
    assert torch.equal(weights(a.model), weights(b.model)) and not next(iter(b.model.parameters())).is_cuda
    b.fit(1)

@pytest.mark.parametrize('to', ['to_fp16','to_bf16'])
@pytest.mark.parametrize('opt_func', [partial(SGD, mom=0.9), Adam])
def test_16_bits_train_like_32(to, opt_func):
    a,b = learner(opt_func=opt_func),getattr(learner(opt_func=opt_func), to)()
    kinds,preds = [],[]
    b.model[0].register_forward_hook(lambda m, i, o: kinds.append(o.dtype))
    b.add_cb(Callback(after_pred=lambda self: preds.append(self.pred.dtype)))
    for o in (a,b): o.fit(2)
    assert torch.allclose(torch.tensor(a.recorder.losses), torch.tensor(b.recorder.losses), atol=0.03)
    assert set(kinds)=={torch.float16 if to=='to_fp16' else torch.bfloat16} and set(preds)=={torch.float32}
    assert all(p.dtype==torch.float32 for p in b.model.parameters())

def test_the_factor_on_the_loss_is_that_of_torchs_scaler():
    "The same training by hand, with a scale at which the first steps overflow"
    data,kw = to_device(batches(), 'cuda'),dict(init_scale=2.**24, growth_interval=3)
    learn = learner(opt_func=partial(SGD, mom=0.9), data=data).to_fp16(**kw)
    ref = learner(data=data).model.cuda()
    opt,scaler,losses = torch.optim.SGD(list(ref.parameters()), lr=1e-3, momentum=0.9),torch.amp.GradScaler('cuda', **kw),[]
    learn.add_cb(Callback(after_loss=lambda self: losses.append(self.loss.item()) if self.training else None))
    learn.fit(2)
    for i,(x,y) in enumerate(data*2):
        with torch.autocast('cuda', torch.float16): pred = ref(x)
        loss = cross_entropy(pred.float(), y)
        assert abs(loss.item()-losses[i])<1e-2
        scaler.scale(loss).backward()
        scaler.step(opt), scaler.update(), opt.zero_grad()
    assert learn.mixed_precision.scaler.factor==scaler.get_scale() and learn.mixed_precision.skipped>0
    assert torch.allclose(weights(learn.model), weights(ref), atol=1e-3)

def test_bfloat16_never_waits_for_the_gpu():
    learn = learner(data=to_device(batches(), 'cuda')).to_bf16()
    learn.fit(1)
    torch.cuda.set_sync_debug_mode('error')
    try: learn.fit(1, cbs=Callback(after_train=lambda self: torch.cuda.set_sync_debug_mode('default')))
    finally: torch.cuda.set_sync_debug_mode('default')

@pytest.mark.slow
def test_channels_last_and_compiled_train_like_the_plain_model():
    a,b = learner().to_bf16(),learner().to_bf16().to_channelslast().compile()
    for o in (a,b): o.fit(2)
    assert torch.allclose(torch.tensor(a.recorder.losses), torch.tensor(b.recorder.losses), atol=0.03)
    assert list(a.model.state_dict())==list(b.model.state_dict())

def test_lr_find_in_float16_leaves_no_trace():
    learn = learner().to_fp16()
    before = weights(learn.model)
    learn.lr_find(num_it=10, show_plot=False)
    assert torch.equal(weights(learn.model), before) and learn.mixed_precision.scaler.factor==2.**16

def test_memory_is_let_go_after_an_error():
    learn = learner()
    learn.fit(1)
    before = torch.cuda.memory_allocated()
    with pytest.raises(ZeroDivisionError): learn.fit(1, cbs=Callback(after_loss=lambda self: 1/0))
    assert torch.cuda.memory_allocated() <= before+2**20 # some gradients may be there

def test_validation_and_rows_ask_the_device_once_an_epoch():
    "No call waits for the GPU inside an epoch"
    learn = learner(metrics=accuracy, data=to_device(batches(), 'cuda'))
    learn.fit(1)
    torch.cuda.set_sync_debug_mode('error')
    try:
        learn.fit(1, cbs=Callback(after_train=lambda self: None, after_validate=lambda self: torch.cuda.set_sync_debug_mode('default')))
    finally: torch.cuda.set_sync_debug_mode('default')

def test_every_container_moves():
    b = to_device({'a':[torch.ones(2), (torch.zeros(1), 'text')]}, default_device())
    assert b['a'][0].is_cuda and b['a'][1][0].is_cuda and b['a'][1][1] == 'text'
