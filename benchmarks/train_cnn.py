"The book's CNN on a folder of pictures, ours and fastai's: python benchmarks/train_cnn.py DATA [EPOCHS]"
import json,subprocess,sys,time
from pathlib import Path

bs,size,lr = 128,64,0.1

def ours(data, epochs):
    from scratchai.all import ImageDataLoaders,Learner,Normalize,SGD,accuracy,imagenet_stats,set_seed,simple_cnn
    set_seed(42)
    dls = ImageDataLoaders.from_folder(data, size=size, bs=bs, num_workers=2, device='cpu', batch_tfms=Normalize.from_stats(*imagenet_stats))
    learn = Learner(dls, simple_cnn(dls.c), opt_func=SGD, metrics=accuracy)
    with learn.no_bar(), learn.no_logging(): return timed(learn, epochs)

def fastai(data, epochs):
    import peers
    from fastai.vision.all import (CategoryBlock,CrossEntropyLossFlat,DataBlock,GrandparentSplitter,ImageBlock,Learner,Normalize,Resize,
        SGD,accuracy,apply_init,get_image_files,imagenet_stats,nn,parent_label,set_seed)
    set_seed(42)
    block = DataBlock((ImageBlock,CategoryBlock), get_items=get_image_files, get_y=parent_label, splitter=GrandparentSplitter(valid_name='val'),
                      item_tfms=Resize(size, method='squish'), batch_tfms=Normalize.from_stats(*imagenet_stats))
    dls = block.dataloaders(data, bs=bs, num_workers=2, device='cpu')
    convs = [l for ni,nf in [(3,16),(16,32),(32,64),(64,128)] for l in (nn.Conv2d(ni, nf, 3, 2, 1), nn.ReLU())]
    model = nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, dls.c))
    apply_init(model)
    learn = Learner(dls, model, loss_func=CrossEntropyLossFlat(), opt_func=SGD, metrics=accuracy)
    with learn.no_bar(), learn.no_logging(): return timed(learn, epochs, moms=(0,0,0))

def timed(learn, epochs, **kwargs):
    "Accuracy after `epochs` of 1cycle, and training images a second, validation counted in the time"
    t = time.perf_counter()
    learn.fit_one_cycle(epochs, lr, **kwargs)
    return float(learn.recorder.values[-1][-1]), len(learn.dls.train_ds)*epochs/(time.perf_counter()-t)

def main(data, epochs=8, reps=3):
    import report
    res = {'ours': [], 'fastai': []}
    for _ in range(reps):  # in turn, each in a fresh process
        for who in res: res[who].append(json.loads(subprocess.run([sys.executable, __file__, data, str(epochs), who], stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1]))
    med = {who: sorted(r for _,r in v)[len(v)//2] for who,v in res.items()}
    rows = [('','training images/s (median)','each run','accuracy')]
    rows += [(who, f'{med[who]:.0f}', ', '.join(f'{r:.0f}' for _,r in v), f'{v[0][0]:.1%}') for who,v in res.items()]
    report.write(f'The book\'s CNN: {epochs} epochs on {Path(data).name}, batch {bs}, SGD, 1cycle to {lr}',
                 f"{report.table(rows)}\n\nRatio: **{med['ours']/med['fastai']:.2f}** times fastai's rate. Two worker processes each; loading, training and validation in the time.")

if __name__=='__main__':
    data,epochs = sys.argv[1],int((sys.argv[2:] or [8])[0])
    if len(sys.argv)>3: print(json.dumps({'ours':ours, 'fastai':fastai}[sys.argv[3]](data, epochs)))
    else: main(data, epochs)
