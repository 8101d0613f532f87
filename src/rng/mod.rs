//! Philox, Mersenne Twister, torch's normals, Brownian trees, seeds and ENSD. Uses no other room.
