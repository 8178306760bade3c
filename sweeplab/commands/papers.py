"""The experiments of the papers, a row for each table, figure and ablation: what it shows, and what runs it here."""

from dataclasses import dataclass
from typing import Literal

Paper = Literal["verma", "cleanclip", "safeclip", "par"]

PAPERS: dict[Paper, str] = {
    "verma": "Verma et al.: Effective backdoor mitigation depends on the pre-training objective",
    "cleanclip": "Bansal et al.: CleanCLIP (appendix; the main text was not at hand)",
    "safeclip": "Yang et al.: Better safe than sorry (SafeCLIP; an older version than its code)",
    "par": "Singh et al.: Perturb and recover (PAR; captions, abstract, and tables from a secondary source)",
}


@dataclass(frozen=True)
class PaperRun:
    """Sweeps and victims of one script that belong to a row."""

    script: str
    """Its file's name in `sweeps/`, without the ending."""
    only: tuple[str, ...]
    """What `--only` is given, each once."""
    flags: str = ""
    """Others that the row needs."""

    @property
    def command(self) -> str:
        """For a shell, in the repository's folder."""
        quoted = (f"--only {name}" if "*" not in name else f"--only '{name}'" for name in self.only)
        return " ".join(word for word in (f"python sweeps/{self.script}.py", self.flags, *quoted) if word)


@dataclass(frozen=True)
class PaperRow:
    """One table, figure or ablation of a paper."""

    id: str
    shows: str
    runs: tuple[PaperRun, ...] = ()
    """Empty: no sweep or victim belongs to it."""
    then: str = ""
    """A command that measures, or draws, what the runs' own records do not hold."""
    ours: str = ""
    """What is chosen here, because the text does not state it, or done otherwise."""
    lacks: str = ""
    """What of the row cannot be made yet."""
    is_nothing: bool = False
    """Whether there is nothing to run: a diagram, or facts."""

    @property
    def paper(self) -> Paper:
        """Which one it is of."""
        return next(paper for paper in PAPERS if self.id.startswith(f"{paper}-"))


def _grid(*only: str) -> PaperRun:
    """Sweeps of the CC6M script, which searches continuously unless it is told otherwise."""
    return PaperRun("cleanclip_cc6m", only, "--search grid")


def _verma(*only: str) -> PaperRun:
    return PaperRun("verma_cc6m", only)


def _victims(*only: str) -> PaperRun:
    return PaperRun("verma_victims", only)


def _cc3m(*only: str) -> PaperRun:
    return PaperRun("cleanclip_cc3m", only)


def _safeclip(*only: str) -> PaperRun:
    return PaperRun("safeclip_cc1m", only)


def _par(*only: str) -> PaperRun:
    return PaperRun("par", only)


M, S = "cleanclip-cc6m-mmcl", "cleanclip-cc6m-mmcl-ssl"
SAMPLE = " --clean-pairs 10000"
PREVIEW = "sweeplab attack preview {} IMAGE... --to preview.png"
STRUCTURED = "badnet-stripes blended-stripes blended-triangles blended-text"


def _scores(script: str, row: str, flags: str = "") -> str:
    """CLIPScores of a row's victims, in a folder of its own, since `_over_epochs` compares all that lies there."""
    return f"sweeplab examine FOLDER --script sweeps/{script}.py --only NAME{flags} --to tables/{row}/NAME"


def _over_epochs(row: str, flags: str = "") -> str:
    return f" && sweeplab compare tables/{row}/*{flags}"


def _map(script: str, row: str) -> str:
    return f"sweeplab examine POISONED CLEANED... --script sweeps/{script}.py --only NAME --what map --to maps/{row}"


MMCL_ALONE = (
    "the rates of MMCL alone (1e-4, 5e-4, 1e-3, 5e-3) and its batch of 128 are those of the authors' scripts, which "
    "elsewhere have 1e-4, 3e-4, 1e-3, 3e-3"
)

ROWS: tuple[PaperRow, ...] = (
    PaperRow("verma-fig1", "diagram of the study", is_nothing=True),
    PaperRow(
        "verma-tab1",
        "accuracy change of the best cleaned state, six victims",
        (_grid(M, S), _victims("verma-fig3-*", "verma-fig12-*")),
        ours="an ASR below 5 %, where the paper has at most 5 %: the same on 49,950 images; batch 64, as in the "
        "authors' scripts, where the text says 128",
    ),
    PaperRow(
        "verma-tab2",
        "accuracy before and after cleaning, CC3M and CC6M",
        (_grid(M, S), _victims("verma-fig10-m", "verma-fig10-s")),
        ours="as verma-tab1",
    ),
    PaperRow(
        "verma-tab3",
        "accuracy and ASR of the eight victims",
        (_victims("cc6m-*", "verma-tab3-*"),),
        ours="finetuning has 64 epochs; its rate of 5e-7 stands in the authors' file names alone",
    ),
    PaperRow(
        "verma-fig2-m",
        "CC6M, MMCL victim under three cleaning losses",
        (_grid(M), _verma("verma-fig2-m-*")),
        ours=f"the rates of SSL alone are those of D.3; {MMCL_ALONE}",
        then="sweeplab compare cleanclip-cc6m-mmcl-grid 'verma-fig2-m-*'",
    ),
    PaperRow(
        "verma-fig2-s",
        "the same, MMCL + SSL victim",
        (_grid(S), _verma("verma-fig2-s-*")),
        ours="the rates of SSL alone are those of D.4; MMCL alone as in verma-fig2-m",
        then="sweeplab compare cleanclip-cc6m-mmcl-ssl-grid 'verma-fig2-s-*'",
    ),
    PaperRow(
        "verma-fig3-m",
        "poison by finetuning OpenAI's model, MMCL",
        (_victims("verma-fig3-m"),),
        ours="as verma-tab3",
        then="sweeplab compare 'verma-fig3-*'",
    ),
    PaperRow(
        "verma-fig3-s",
        "the same, MMCL + SSL",
        (_victims("verma-fig3-s"),),
        ours="as verma-tab3",
        then="sweeplab compare 'verma-fig3-*'",
    ),
    PaperRow(
        "verma-fig4-m",
        "ViT, MMCL",
        (_victims("verma-fig4-m"),),
        ours="ViT-B/32; the rates (D.3 and D.4 together), 20 epochs and 100,000 pairs; 64 epochs of pre-training, of "
        "which App. A's rule takes one",
        then="sweeplab compare 'verma-fig4-?'",
    ),
    PaperRow(
        "verma-fig4-s",
        "ViT, MMCL + SSL",
        (_victims("verma-fig4-s"),),
        ours="as verma-fig4-m",
        then="sweeplab compare 'verma-fig4-?'",
    ),
    PaperRow(
        "verma-fig5a",
        "three cleaning trajectories, MMCL victim",
        (_grid(M),),
        then="sweeplab compare cleanclip-cc6m-mmcl-grid --trial A --trial B --trial C",
        ours="which three is not stated",
    ),
    PaperRow(
        "verma-fig5b",
        "the same, MMCL + SSL victim",
        (_grid(S),),
        then="sweeplab compare cleanclip-cc6m-mmcl-ssl-grid --trial A --trial B --trial C",
        ours="as verma-fig5a",
    ),
    PaperRow(
        "verma-fig6-m",
        "5 and 10 poisons in the cleaning set, MMCL",
        (_verma("verma-fig6-m-*"),),
        then="sweeplab compare 'verma-fig6-m-*'",
    ),
    PaperRow(
        "verma-fig6-s",
        "the same, MMCL + SSL",
        (_verma("verma-fig6-s-*"),),
        then="sweeplab compare 'verma-fig6-s-*'",
    ),
    PaperRow(
        "verma-fig7-kmeans",
        "deep clustering, labels by k-means",
        (PaperRun("verma_methods", ("verma-fig7-kmeans",)),),
        ours="a pair keeps its cluster for the epoch, as the text says and the code does not; 20 epochs and 9 rates, "
        "as D.11 lists, where Sec. 5 says 10 and 8",
        then="sweeplab compare 'verma-fig7-*'",
    ),
    PaperRow(
        "verma-fig7-siglip",
        "deep clustering, labels by SigLIP",
        (PaperRun("verma_methods", ("verma-fig7-siglip",)),),
        ours="labels of the code's model, made by `sweeplab data label` first; the text names another; "
        "epochs and rates as in verma-fig7-kmeans",
        then="sweeplab compare 'verma-fig7-*'",
    ),
    PaperRow(
        "verma-heavy-mmcl",
        "heavy weight decay, MMCL cleaning",
        (PaperRun("verma_methods", ("verma-heavy-mmcl",)),),
        ours="that the three objectives, whose names are lost, are MMCL, SSL and both; 20 epochs, as D.12 lists, where "
        "Sec. 5 says 10; the decay applies, which it may not have done in the authors' runs",
        then="sweeplab compare 'verma-heavy-*'",
    ),
    PaperRow(
        "verma-heavy-ssl",
        "the same, SSL cleaning",
        (PaperRun("verma_methods", ("verma-heavy-ssl",)),),
        ours="as verma-heavy-mmcl",
        then="sweeplab compare 'verma-heavy-*'",
    ),
    PaperRow(
        "verma-heavy-both",
        "the same, MMCL + SSL cleaning",
        (PaperRun("verma_methods", ("verma-heavy-both",)),),
        ours="as verma-heavy-mmcl",
        then="sweeplab compare 'verma-heavy-*'",
    ),
    PaperRow(
        "verma-shrink-starts",
        "shrink and perturb: 255 starts, measured",
        (PaperRun("shrink_perturb_cc6m", ("shrink-perturb-cc6m-starts",)),),
        ours="17 x 15 starts, as D.13 lists, where Sec. 5 says 5 x 15; p scales a fresh initialisation, as in the code",
    ),
    PaperRow(
        "verma-shrink",
        "shrink and perturb: the selected start, cleaned",
        (PaperRun("shrink_perturb_cc6m", ("shrink-perturb-cc6m",)),),
        ours="9 rates, as D.13 lists, where Sec. 5 says 8; the start as in verma-shrink-starts",
        then="sweeplab report shrink-perturb-cc6m",
    ),
    PaperRow(
        "verma-fig10-m",
        "CC3M, three cleaning losses, MMCL victim",
        (_victims("verma-fig10-m*"),),
        ours="the rates of SSL alone are those of D.1; MMCL alone as in verma-fig2-m",
        then="sweeplab compare 'verma-fig10-m*'",
    ),
    PaperRow(
        "verma-fig10-s",
        "the same, MMCL + SSL victim",
        (_victims("verma-fig10-s*"),),
        ours="the rates of SSL alone are those of D.2; MMCL alone as in verma-fig2-m",
        then="sweeplab compare 'verma-fig10-s*'",
    ),
    PaperRow(
        "verma-fig11-m",
        "CC3M, poisons among the cleaning pairs, MMCL",
        (_victims("verma-fig11-m-*"),),
        ours="pairs of CC12M, as in the code; 10 and 25 poisons beside the figure's 5",
        then="sweeplab compare 'verma-fig11-m-*'",
    ),
    PaperRow(
        "verma-fig11-s",
        "the same, MMCL + SSL",
        (_victims("verma-fig11-s-*"),),
        ours="as verma-fig11-m",
        then="sweeplab compare 'verma-fig11-s-*'",
    ),
    PaperRow(
        "verma-fig12-m",
        "label-consistent poison, MMCL",
        (_victims("verma-fig12-m"),),
        ours="gain and loss of the two figures may be swapped in the paper",
        then="sweeplab compare 'verma-fig12-*'",
    ),
    PaperRow(
        "verma-fig12-s",
        "the same, MMCL + SSL",
        (_victims("verma-fig12-s"),),
        ours="as verma-fig12-m",
        then="sweeplab compare 'verma-fig12-*'",
    ),
    PaperRow(
        "verma-fig13",
        "twice the cleaning pairs",
        (_verma("verma-fig13"),),
        ours="the MMCL + SSL victim",
        then="sweeplab report verma-fig13",
    ),
    PaperRow(
        "verma-fig14-50",
        "50 epochs of cleaning",
        (_verma("verma-fig14-50"),),
        ours="the MMCL + SSL victim; 13 rates, as D.15 lists, where App. H says 12",
        then="sweeplab compare 'verma-fig14-*'",
    ),
    PaperRow(
        "verma-fig14-100",
        "100 epochs of cleaning",
        (_verma("verma-fig14-100"),),
        ours="as verma-fig14-50",
        then="sweeplab compare 'verma-fig14-*'",
    ),
    PaperRow(
        "verma-fig15",
        "larger SSL weights, beside weight 1 of D.4",
        (_verma("verma-fig15"), _grid(S)),
        ours="the MMCL + SSL victim",
        then="sweeplab compare verma-fig15 cleanclip-cc6m-mmcl-ssl-grid --by ssl_weight",
    ),
    PaperRow(
        "verma-fig16",
        "triggered pictures with their captions",
        then="sweeplab attack preview --script sweeps/cleanclip_cc6m.py --only cleanclip-cc6m-mmcl --to poisons.png",
        ours="the first nine of the 3,000 poisoned pairs; `sweeplab attack export` writes all of them",
    ),
    PaperRow(
        "verma-fig17",
        "accuracy and ASR over pre-training, MMCL",
        (_victims("verma-tab3-cc3m-mmcl"),),
        then="sweeplab compare verma-tab3-cc3m-mmcl",
        ours="CC3M's victim; which one is not stated",
    ),
    PaperRow(
        "verma-fig18",
        "the same, MMCL + SSL",
        (_victims("verma-tab3-cc3m-mmcl-ssl"),),
        then="sweeplab compare verma-tab3-cc3m-mmcl-ssl",
        ours="as verma-fig17",
    ),
    PaperRow(
        "verma-fig19",
        "all trajectories, MMCL victim",
        (_grid(M),),
        then="sweeplab compare cleanclip-cc6m-mmcl-grid",
    ),
    PaperRow(
        "verma-fig20",
        "all trajectories, MMCL + SSL victim",
        (_grid(S),),
        then="sweeplab compare cleanclip-cc6m-mmcl-ssl-grid",
    ),
    PaperRow("cleanclip-c1", "victims of four attacks", (_cc3m("cleanclip-c1-*"),)),
    PaperRow(
        "cleanclip-c2",
        "default cleaning of five victims",
        (_cc3m("cleanclip-c2-*"),),
        ours="50 warm-up steps for the poison of OpenAI's model",
    ),
    PaperRow(
        "cleanclip-fig3",
        "accuracy and ASR against the SSL weight, Blended",
        (_cc3m("cleanclip-fig3"),),
        ours="the five weights",
        then="sweeplab compare cleanclip-fig3 --by ssl_weight",
    ),
    PaperRow(
        "cleanclip-c5",
        "another cleaning set, 3 rates x 4 weights",
        (_cc3m("cleanclip-c5"),),
        ours="100,000 pairs of SBU, and BadNet's victim",
    ),
    PaperRow("cleanclip-fig4", "diagram of attack and inference", is_nothing=True),
    PaperRow(
        "cleanclip-fig5",
        "pictures of the attacks",
        then=PREVIEW.format("badnet blended wanet"),
        ours="label-consistent poison has BadNet's trigger",
    ),
    PaperRow("cleanclip-tab8", "supervised finetuning, 4 attacks x 3 sizes", (_cc3m("cleanclip-tab8-*"),)),
    PaperRow(
        "cleanclip-fig6",
        "map of target class and triggered images, before and after",
        (_cc3m("cleanclip-c2-badnet"),),
        then=_map("cleanclip_cc3m", "cleanclip-fig6"),
        ours="BadNet; distances are means over all pairs, by embeddings and in the plane",
    ),
    PaperRow(
        "cleanclip-g",
        "linear probe before and after cleaning",
        (_cc3m("cleanclip-c2-badnet"),),
        then="sweeplab examine CHECKPOINT --script sweeps/cleanclip_cc3m.py --only cleanclip-c2-badnet --what probe "
        "--train data/imagenet/train50000",
        ours="the optimum by L-BFGS, where the authors stop AdamW after some epochs",
    ),
    PaperRow(
        "cleanclip-h",
        "ABL: pairs that a clean CLIP finds odd are unlearned",
        (_cc3m("cleanclip-h-*"),),
        ours="all four attacks; unlearning weight 1",
    ),
    PaperRow(
        "cleanclip-fig7a",
        "CLIPScores over epochs, BadNet, 300 poisons",
        (_cc3m("cleanclip-fig7a"),),
        then=_scores("cleanclip_cc3m", "cleanclip-fig7a", SAMPLE) + _over_epochs("cleanclip-fig7a"),
    ),
    PaperRow(
        "cleanclip-fig7b",
        "the same, Blended",
        (_cc3m("cleanclip-fig7b"),),
        then=_scores("cleanclip_cc3m", "cleanclip-fig7b", SAMPLE) + _over_epochs("cleanclip-fig7b"),
    ),
    PaperRow(
        "cleanclip-fig7-1500",
        "the same with 1,500 poisons",
        (_cc3m("cleanclip-c1-badnet", "cleanclip-c1-blended"),),
        then=_scores("cleanclip_cc3m", "cleanclip-fig7-1500", SAMPLE) + _over_epochs("cleanclip-fig7-1500"),
    ),
    *(
        PaperRow(
            f"cleanclip-fig8{letter}",
            f"poisons among the top 10 % of scores by epoch, {count:,} poisons",
            (_cc3m(f"cleanclip-fig8-{count}"),),
            then=_scores("cleanclip_cc3m", f"cleanclip-fig8{letter}") + _over_epochs(f"cleanclip-fig8{letter}"),
        )
        for letter, count in (("a", 75), ("b", 300), ("c", 1000))
    ),
    PaperRow("cleanclip-i3-blended", "ABL by the model's own scores, Blended", (_cc3m("cleanclip-i3-blended"),)),
    PaperRow("cleanclip-i3-wanet", "the same, WaNet", (_cc3m("cleanclip-i3-wanet"),)),
    PaperRow(
        "cleanclip-i3-weight", "larger unlearning weights", (_cc3m("cleanclip-i3-weight-*"),), ours="weights 10 and 100"
    ),
    PaperRow("safeclip-fig1", "diagram of the effect on the encoders", is_nothing=True),
    PaperRow(
        "safeclip-fig2a",
        "cosines of clean and poisoned pairs after one MMCL epoch",
        (_safeclip("safeclip-fig2a"),),
        then=_scores("safeclip_cc1m", "safeclip-fig2a"),
        ours="targeted images, 100 poisons each",
    ),
    PaperRow(
        "safeclip-fig2b",
        "the same after SafeCLIP's warm-up",
        (_safeclip("safeclip-tab3-5-1"),),
        then=_scores("safeclip_cc1m", "safeclip-fig2b"),
        ours="as safeclip-fig2a",
    ),
    PaperRow(
        "safeclip-fig2c",
        "size of the safe set and its poisons over epochs",
        (_safeclip("safeclip-tab1-tdpa-safeclip-100"),),
        then="sweeplab compare safeclip-tab1-tdpa-safeclip-100",
        ours="the first share and the step of the released code",
    ),
    PaperRow(
        "safeclip-tab1-tdpa",
        "PSR of 4 objectives x 100 and 500 poisons a target",
        (_safeclip("safeclip-tab1-tdpa-*"),),
        ours="SafeCLIP is the paper's (eq. 4) with the released code's shares, RoCLIP that of its release; "
        "targets get classes that captions mention",
    ),
    PaperRow(
        "safeclip-tab1-ba",
        "BSR of 4 objectives x 200 and 500 poisons",
        (_safeclip("safeclip-tab1-ba-*"),),
        ours="over all of ImageNet's images, where about 300 are inferred; as safeclip-tab1-tdpa",
    ),
    PaperRow(
        "safeclip-tab2",
        "zero-shot and linear probe on ten sets",
        (_safeclip("safeclip-tab1-tdpa-clip-100", "safeclip-tab1-tdpa-safeclip-100"),),
        then="sweeplab evaluate CHECKPOINT --sets sweeps/safeclip_cc1m.py",
        ours="the victims of Table 1 with targeted images; prompts of CLIP's paper; the probe's optimum by L-BFGS",
    ),
    PaperRow(
        "safeclip-tab3",
        "lengths of the warm-up",
        (_safeclip("safeclip-tab3-*"),),
        then=_scores("safeclip_cc1m", "safeclip-tab3"),
        ours="scored on plain pairs, where the code scores augmented ones",
    ),
    PaperRow(
        "safeclip-fig3a",
        "with and without nearest neighbours",
        (_safeclip("safeclip-tab3-5-1", "safeclip-fig3a-*"),),
        then=_scores("safeclip_cc1m", "safeclip-fig3a") + _over_epochs("safeclip-fig3a", " --by nearest_neighbours"),
    ),
    PaperRow(
        "safeclip-fig3b",
        "high and low rate of the slow epoch",
        (_safeclip("safeclip-tab3-5-1", "safeclip-fig3a-with-500", "safeclip-fig3b-*"),),
        then=_scores("safeclip_cc1m", "safeclip-fig3b") + _over_epochs("safeclip-fig3b", " --by slow_learning_rate"),
        ours="the high rate is 5e-4",
    ),
    PaperRow(
        "safeclip-fig3c",
        "with and without the unimodal loss on risky pairs",
        (_safeclip("safeclip-fig3c-*"),),
        then="sweeplab compare 'safeclip-fig3c-*'",
    ),
    PaperRow(
        "safeclip-fig4",
        "step by which the safe share grows",
        (_safeclip("safeclip-fig3c-with", "safeclip-fig4-*"),),
        ours="steps 0.01 and 0.05",
        then="sweeplab compare safeclip-fig3c-with 'safeclip-fig4-*' --by share_step",
    ),
    PaperRow(
        "safeclip-tab4", "sizes of the ten sets", ours="the sets of safeclip-tab2 must have them", is_nothing=True
    ),
    PaperRow(
        "safeclip-sec4",
        "claim: one MMCL epoch plants a poison of 0.01 %",
        (_safeclip("safeclip-tab1-tdpa-clip-100"),),
        then="sweeplab compare safeclip-tab1-tdpa-clip-100",
    ),
    PaperRow(
        "par-fig1",
        "accuracy and ASR after RoCLIP, CleanCLIP and PAR, over all attacks",
        (_par("par-victim-*", "par-tab-rn50-*"),),
        ours="as par-tab-rn50; the bars are the best cleaned epoch of each",
        then="sweeplab compare 'par-tab-rn50-*'",
    ),
    PaperRow(
        "par-fig2",
        "pictures of the triggers",
        then=PREVIEW.format(f"badnet blended {STRUCTURED}"),
        ours="which triggers is not in the text at hand",
    ),
    PaperRow("par-fig6", "structured triggers, larger", then=PREVIEW.format(STRUCTURED)),
    PaperRow(
        "par-fig7",
        "more triggered pictures",
        then=PREVIEW.format(f"badnet blended wanet {STRUCTURED}"),
        ours="as par-fig2",
    ),
    PaperRow(
        "par-fig3",
        "ASR against accuracy, real and synthetic cleaning pairs",
        (_par("par-fig3-*"),),
        ours="the values of tau and of the SSL weights; 500,000 synthetic pairs; as par-tab-rn50",
        then="sweeplab compare 'par-fig3-*'",
    ),
    PaperRow(
        "par-fig4-loss",
        "both terms of the loss over steps, Blended-Text",
        (_par("par-fig4"),),
        ours="as par-tab-rn50",
        then="sweeplab report par-fig4",
    ),
    PaperRow(
        "par-fig4-metrics",
        "accuracy and ASR over steps, Blended-Text",
        (_par("par-fig4"),),
        then="sweeplab compare par-fig4",
        ours="10,000 images, the number that Fig. 9 has, ten of each class; as par-tab-rn50",
    ),
    PaperRow(
        "par-fig4-map",
        "maps of embeddings: poisoned, CleanCLIP, PAR",
        (_par("par-tab-rn50-cleanclip-blended-text", "par-tab-rn50-par-blended-text"),),
        ours="which groups the map shows; as par-tab-rn50",
        then=_map("par", "par-fig4-map"),
    ),
    PaperRow(
        "par-fig5",
        "ASR against the poisoning rate",
        (_par("par-fig5-*", "par-tab-rn50-par-badnet-stripes", "par-tab-rn50-cleanclip-badnet-stripes"),),
        ours="BadNet-Stripes; rates 0.1, 0.3 and 1 % beside the stated 0.05 %; as par-tab-rn50",
        then="sweeplab compare 'par-fig5-*' par-tab-rn50-par-badnet-stripes par-tab-rn50-cleanclip-badnet-stripes "
        "--by rate",
    ),
    PaperRow(
        "par-fig8",
        "maps for BadNet",
        (_par("par-tab-rn50-cleanclip-badnet", "par-tab-rn50-par-badnet"),),
        ours="as par-fig4-map",
        then=_map("par", "par-fig8"),
    ),
    PaperRow(
        "par-fig9",
        "as Fig. 4 for BadNet-Stripes",
        (_par("par-fig9", "par-tab-rn50-cleanclip-badnet-stripes"),),
        ours="as par-fig4-metrics and par-fig4-map",
        then=_map("par", "par-fig9") + " && sweeplab compare par-fig9",
    ),
    PaperRow(
        "par-fig10",
        "as Fig. 4 for Blended-Stripes",
        (_par("par-fig10", "par-tab-rn50-cleanclip-blended-stripes"),),
        ours="as par-fig9",
        then=_map("par", "par-fig10") + " && sweeplab compare par-fig10",
    ),
    PaperRow(
        "par-tab-rn50",
        "RN50, 8 attacks x 3 methods",
        (_par("par-tab-rn50-*"),),
        ours="how models are poisoned; the settings of CleanCLIP and RoCLIP; 10 epochs, where a script of the authors "
        "has 2. The script's docstring has the command "
        "that optimises BadCLIP's patch first",
    ),
    PaperRow("par-tab-vit", "ViT-B/32, 4 structured triggers", (_par("par-tab-vit-*"),), ours="as par-tab-rn50"),
    PaperRow(
        "par-tab-synth",
        "cleaning with synthetic pairs alone",
        (_par("par-tab-synth"),),
        ours="500,000 pairs of SynthCLIP; as par-tab-rn50",
    ),
    PaperRow(
        "par-coco",
        "COCO retrieval, clean and triggered",
        (_par("par-victim-badnet", "par-tab-rn50-*-badnet"),),
        then="sweeplab evaluate CHECKPOINT --sweep NAME --retrieval data/coco/dataset_coco.json",
        ours="BadNet; captions as they are; images whose own captions name the target are left out of the ASR; "
        "as par-tab-rn50",
    ),
)
"""All 85, in the order of the papers."""
