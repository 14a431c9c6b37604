"""gsplat's compositing rules (`RasterizeToPixels3DGSFwd.cu`), in the precision in which they are compared.

A splat's alpha is min(ALPHA_MAX, opacity * exp(-s)) and is skipped below ALPHA_MIN; a pixel stops before the splat that
would bring its transmittance to STOP or below.
"""

import numpy as np
from diffsplat_client.cloud import VISIBLE_OPACITY

ALPHA_MIN = np.float32(VISIBLE_OPACITY)
ALPHA_MAX = np.float32(0.999)
STOP = np.float32(1e-4)
