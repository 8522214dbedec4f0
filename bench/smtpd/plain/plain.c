/* Plain does what bare does, in C. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static char in[1 << 17], out[1 << 18], registrations[1 << 16];
static size_t filled, nreg, nout;

static void
put(const char *s, size_t n)
{
	if (nout + n > sizeof out)
		_exit(1);
	memcpy(out + nout, s, n);
	nout += n;
}

static void
handle(char *line, size_t len)
{
	char *f[8], *p = line, *end = line + len;
	int n = 0;

	if (len == 12 && memcmp(line, "config|ready", 12) == 0) {
		put(registrations, nreg);
		put("register|ready\n", 15);
		return;
	}
	for (f[n++] = p; n < 8 && (p = memchr(p, '|', end - p)) != NULL;)
		f[n++] = ++p;
	if (n < 8 || memcmp(line, "filter|", 7) != 0)
		return;
	if (strncmp(f[4], "data-line|", 10) == 0) {
		put("filter-dataline|", 16);
		put(f[5], end - f[5]);
		put("\n", 1);
		return;
	}
	put("filter-result|", 14);
	put(f[5], f[7] - f[5]);
	put("proceed\n", 8);
}

int
main(int argc, char **argv)
{
	FILE *r;
	ssize_t got;

	if (argc != 2 || (r = fopen(argv[1], "r")) == NULL)
		return 1;
	nreg = fread(registrations, 1, sizeof registrations, r);
	fclose(r);
	while ((got = read(0, in + filled, sizeof in - filled)) > 0) {
		char *line = in, *lf, *end = in + (filled += got);

		for (; (lf = memchr(line, '\n', end - line)) != NULL; line = lf + 1)
			handle(line, lf - line);
		filled = end - line;
		memmove(in, line, filled);
		for (char *p = out; nout > 0;) {
			if ((got = write(1, p, nout)) < 0)
				return 1;
			p += got;
			nout -= got;
		}
	}
	return 0;
}
