// The kernels over a 3x3 window.
#define CONVATTN_WINDOW 3
#include "kernels_window.cpp"
