// The kernels over a 5x5 window.
#define CONVATTN_WINDOW 5
#include "kernels_window.cpp"
