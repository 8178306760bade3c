"""Grids for PAR and for the methods that its paper compares it with; what the texts do not state is chosen here."""

from sweeplab.search_space import Grid

# Table RN50: PAR with one tau, tuned on BadNet-Stripes and kept for all attacks and encoders.
PAR = Grid(axes={"tau": (2.15,)}, source="PerturbAndRecover: tau = 2.15")

# Fig. 3: 6 values of tau. The figure's are not stated; chosen here, with the paper's in the middle. 4 is no bound.
TAU = Grid(axes={"tau": (0.5, 1.0, 1.5, 2.15, 3.0, 4.0)}, source="chosen here, around PAR's tau = 2.15")

# Fig. 3: 5 SSL weights of CleanCLIP. The figure's are not stated; chosen here, from Bansal et al., App. C.5.
SSL_WEIGHTS = Grid(axes={"ssl_weight": (0.5, 1.0, 2.0, 4.0, 8.0)}, source="chosen here, around Bansal et al., App. C.5")

# RoCLIP as a cleaning method: one rate, that of its release; the paper states no setting.
ROCLIP = Grid(axes={"learning_rate": (5e-5,)}, source="chosen here: the rate of RoCLIP's release")
