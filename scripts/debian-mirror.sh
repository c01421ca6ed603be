# The first Debian mirror in the machine's own sources, deb822 or one-line, or $HEADSTART_DEBIAN_MIRROR; to be sourced.
# In: nothing. Out: `mirror` prints its URL, or nothing. Not here: what is fetched from it.
mirror() {
    if [ -n "${HEADSTART_DEBIAN_MIRROR:-}" ]; then
        echo "$HEADSTART_DEBIAN_MIRROR"
        return
    fi
    # Missing files are no error, nor is a machine without any.
    { cat /etc/apt/sources.list.d/*.sources /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null || true; } |
        sed -n -E 's/^URIs:[[:space:]]*([^[:space:]]+).*/\1/p; s/^deb[[:space:]]+(\[[^]]*\][[:space:]]+)?([^[:space:]]+).*/\2/p' |
        { grep -E '^http.*/debian/?$' || true; } | head -n 1
}
