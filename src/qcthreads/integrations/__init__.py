"""Where qcthreads meets other people's executors and drivers; nothing else here knows them."""
