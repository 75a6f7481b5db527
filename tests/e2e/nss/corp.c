/* A source of nsswitch that knows the names of one company, as that of a VPN's client does:
 *
 *   vpn.corp       10.8.0.1 and fd08::1
 *   four.corp      10.8.0.4
 *   slow*.corp     10.8.0.2, after five seconds
 *   broken.corp    cannot be looked up at the moment
 *
 * and the address 10.8.0.1, which is vpn.corp's. */

#include <errno.h>
#include <netdb.h>
#include <nss.h>
#include <stdint.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

static const unsigned char VPN4[] = {10, 8, 0, 1}, FOUR[] = {10, 8, 0, 4}, SLOW[] = {10, 8, 0, 2};
static const unsigned char VPN6[16] = {0xfd, 8, [15] = 1};

static enum nss_status fill(struct hostent *host, char *buffer, size_t size, int *error, int *herror,
                            const char *name, int family, const void *address)
{
    size_t length = family == AF_INET ? 4 : 16, text = strlen(name) + 1;
    struct {
        char *aliases[1], *addresses[2];
        unsigned char address[16];
    } *made;
    size_t padding = -(uintptr_t)buffer % _Alignof(char *);

    if (size < padding + sizeof *made + text) {
        *error = ERANGE;
        *herror = NETDB_INTERNAL;
        return NSS_STATUS_TRYAGAIN;
    }
    made = (void *)(buffer + padding);
    memcpy(made->address, address, length);
    made->aliases[0] = NULL;
    made->addresses[0] = (char *)made->address;
    made->addresses[1] = NULL;
    host->h_name = memcpy(made + 1, name, text);
    host->h_aliases = made->aliases;
    host->h_addrtype = family;
    host->h_length = length;
    host->h_addr_list = made->addresses;
    return NSS_STATUS_SUCCESS;
}

enum nss_status _nss_corp_gethostbyname2_r(const char *name, int family, struct hostent *host,
                                           char *buffer, size_t size, int *error, int *herror)
{
    const unsigned char *address = NULL;

    if (!strcasecmp(name, "vpn.corp"))
        address = family == AF_INET ? VPN4 : VPN6;
    else if (!strcasecmp(name, "four.corp"))
        address = family == AF_INET ? FOUR : NULL;
    else if (!strncasecmp(name, "slow", 4) && strlen(name) > 9 &&
             !strcasecmp(name + strlen(name) - 5, ".corp")) {
        if (family == AF_INET)
            sleep(5);
        address = family == AF_INET ? SLOW : NULL;
    } else if (!strcasecmp(name, "broken.corp")) {
        *error = EAGAIN;
        *herror = TRY_AGAIN;
        return NSS_STATUS_TRYAGAIN;
    } else {
        *error = ENOENT;
        *herror = HOST_NOT_FOUND;
        return NSS_STATUS_NOTFOUND;
    }
    if (!address) {
        *error = ENOENT;
        *herror = NO_DATA;
        return NSS_STATUS_NOTFOUND;
    }
    return fill(host, buffer, size, error, herror, name, family, address);
}

enum nss_status _nss_corp_gethostbyname_r(const char *name, struct hostent *host, char *buffer,
                                          size_t size, int *error, int *herror)
{
    return _nss_corp_gethostbyname2_r(name, AF_INET, host, buffer, size, error, herror);
}

enum nss_status _nss_corp_gethostbyaddr_r(const void *address, socklen_t length, int family,
                                          struct hostent *host, char *buffer, size_t size,
                                          int *error, int *herror)
{
    if (family == AF_INET && length == 4 && !memcmp(address, VPN4, 4))
        return fill(host, buffer, size, error, herror, "vpn.corp", family, address);
    *error = ENOENT;
    *herror = HOST_NOT_FOUND;
    return NSS_STATUS_NOTFOUND;
}
