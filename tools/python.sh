# The interpreter that a script of this folder runs, $PYTHON or python3, named so that it holds in any folder.
# For scripts at the root of the checkout: . tools/python.sh
python=${PYTHON:-python3}
case $python in
/*) ;;
*/*) python=$PWD/$python ;;
esac
