/* device.c - what is called on a descriptor of the fake device: see fake_device.h. */
#undef _FORTIFY_SOURCE
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "fake_device.h"

#define NFILES 65536
#define SUFFIX ".xenbus"

static struct file *files[NFILES];	/* by descriptor */
static struct file inherited;		/* in a child process, what the parent had open */
static pid_t owner;

static const char *const mode_names[] = {
	"event-first", "ack-first", "old-kernel", "wrong-ids", "slow", "strict", "dead", "freebsd",
};

static void put_user(struct file *f)
{
	struct kernel *k = f->kernel;
	struct message *m;

	if (--f->users)
		return;
	while ((m = f->head)) {
		f->head = m->next;
		free(m);
	}
	/* So that a foreign epoll forgets the pipe, as it would the device. */
	syscall(SYS_close, f->in);
	syscall(SYS_close, f->out);
	put(f);
	k->nfiles--;
	wake(k);
}

/* The device file that fd is, referenced and with the lock held, or NULL and without. */
static struct file *enter(int fd)
{
	struct file *f;

	if (fd < 0 || fd >= NFILES || !__atomic_load_n(&files[fd], __ATOMIC_RELAXED))
		return NULL;
	pthread_mutex_lock(&lock);
	f = files[fd];
	if (f == &inherited || (f && owner != getpid()))
		violation(0, "a descriptor is used in a child of the process that opened it");
	if (f)
		f->users++;
	else
		pthread_mutex_unlock(&lock);
	return f;
}

static ssize_t leave(struct file *f, ssize_t result)
{
	put_user(f);
	pthread_mutex_unlock(&lock);
	if (result >= 0)
		return result;
	errno = -result;
	return -1;
}

/* ---- what the program does to the device ---- */

/*
 * The program's descriptor is the reading end of a pipe: it has POLLIN while
 * there is a byte in it, never POLLOUT (rule 13), O_NONBLOCK and FIONBIO are the
 * pipe's own, and a signal interrupts, or restarts, a read() as it should.
 * FreeBSD's is a socket, which has POLLOUT always.
 */
static int open_device(const char *socket, int flags)
{
	struct kernel *k;
	struct file *f;
	int fd = -1, ends[2];
	bool freebsd;

	pthread_mutex_lock(&lock);
	freebsd = modes & FREEBSD;
	k = find_kernel(socket);
	if (!k)
		goto out;
	if (freebsd ? socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends)
		    : pipe2(ends, O_CLOEXEC | (flags & O_NONBLOCK)))
		goto out;
	fd = syscall(SYS_fcntl, ends[0], flags & O_CLOEXEC ? F_DUPFD_CLOEXEC : F_DUPFD, 0);
	if (fd < 0 || fd >= NFILES) {
		syscall(SYS_close, ends[0]);
		syscall(SYS_close, ends[1]);
		if (fd >= 0)
			syscall(SYS_close, fd);
		fd = -1;
		errno = EMFILE;
		goto out;
	}
	f = allocate(sizeof(*f));
	f->kernel = k;
	f->freebsd = freebsd;
	f->users = f->refs = 1;
	f->in = ends[0];
	f->out = ends[1];
	f->tail = &f->head;
	k->nfiles++;
	files[fd] = f;
out:
	pthread_mutex_unlock(&lock);
	return fd;
}

static ssize_t read_device(struct file *f, char *data, size_t len)
{
	size_t n = 0, part;
	struct message *m;
	ssize_t got;
	char byte;

	/* Rule 13: close() does not wake this, as it holds the pipe. */
	pthread_mutex_unlock(&lock);
	got = syscall(SYS_read, f->in, &byte, 1);
	pthread_mutex_lock(&lock);
	if (got < 0)
		return -errno;
	if (!len)
		violation(11, "read() of 0 bytes with data queued loops in the kernel for ever");
	while (n < len && (m = f->head)) {
		if (!m->taken && m->answers)
			f->outstanding--;
		part = m->size - m->taken < len - n ? m->size - m->taken : len - n;
		memcpy(data + n, m->data + m->taken, part);
		n += part;
		m->taken += part;
		if (m->taken == m->size) {
			f->head = m->next;
			if (!m->next)
				f->tail = &f->head;
			free(m);
		}
	}
	f->readable = !!f->head;
	if (f->readable)
		syscall(SYS_write, f->out, "", 1);
	return n;
}

/* With O_NONBLOCK, too, it waits.  (Of 0 bytes it is not called.) */
static ssize_t read_freebsd(struct file *f, char *data, size_t len)
{
	struct pollfd poll_in = { .fd = f->in, .events = POLLIN };
	size_t n = 0;
	char byte;

	while (len && f->produced == f->consumed) {
		pthread_mutex_unlock(&lock);
		if (poll(&poll_in, 1, -1) < 0) {
			pthread_mutex_lock(&lock);
			return -EINTR;
		}
		pthread_mutex_lock(&lock);
	}
	while (n < len && f->consumed != f->produced)
		data[n++] = f->ring[f->consumed++ % sizeof(f->ring)];
	if (f->readable && f->produced == f->consumed) {
		recv(f->in, &byte, 1, MSG_DONTWAIT);
		f->readable = false;
	}
	return n;
}

/* Waits for the answer as the kernel does: no signal ends it (rule 16). */
static int wait_for(struct request *r)
{
	int error;

	while (!r->done)
		pthread_cond_wait(&news, &lock);
	error = r->error;
	free_request(r);
	return -error;
}

static struct request *to_wait_for(struct request *r)
{
	r->waited = true;
	return r;
}

static int set_watch(struct file *f, const char *path, const char *token)
{
	static unsigned long serial = 0xffff888000000000;
	struct kernel *k = f->kernel;
	struct watch *w = allocate(sizeof(*w));
	struct request *r;
	int error;

	w->file = f;
	w->path = strdup(path);
	w->token = strdup(token);
	snprintf(w->serial, sizeof(w->serial), "%lX", serial += 64);
	w->next = k->watches;
	k->watches = w;
	if (strlen(path) + strlen(w->serial) + 2 > XENSTORE_PAYLOAD_MAX) {
		forget_watch(k, w);
		return -E2BIG;
	}
	r = to_wait_for(queue_own(k, f, XS_WATCH, 0, path, w->serial));
	r->watch = w;
	error = wait_for(r);
	if (error)
		forget_watch(k, w);
	return error;
}

static void end_watch(struct file *f, struct watch *w)
{
	struct request *r = to_wait_for(queue_own(f->kernel, f, XS_UNWATCH, 0, w->path, w->serial));

	r->watch = w;
	forget_watch(f->kernel, w);
	wait_for(r);
}

/* Rule 14. */
static int write_watch(struct file *f, uint32_t type, char *body, size_t len)
{
	static const char *const deadlock =
		"WATCH or UNWATCH with a request outstanding on the descriptor dead-locks the kernel";
	char *token = memchr(body, 0, len);
	struct watch *w;

	if (!token++ || !memchr(token, 0, len - (token - body))) {
		answer_buffer(f, XS_ERROR, "EINVAL");
		return 0;
	}
	/* Rest of the body, a depth, is not looked at. */
	if (type == XS_WATCH) {
		if (f->outstanding)
			violation(10, deadlock);
		return set_watch(f, body, token);
	}
	for (w = f->kernel->watches; w; w = w->next)
		if (w->file == f && !strcmp(w->path, body) && !strcmp(w->token, token))
			break;
	if (w) {
		if (f->outstanding)
			violation(10, deadlock);
		end_watch(f, w);
	}
	acknowledge(f, XS_UNWATCH);
	return 0;
}

static int write_request(struct file *f, struct xsd_sockmsg header, const char *body)
{
	struct transaction *t, **p = find_transaction(f, header.tx_id);
	struct request *r;

	if (header.type == XS_RESET_WATCHES)
		violation(15, "RESET_WATCHES takes the watches of the kernel and of everybody else");
	if (modes & STRICT && f->outstanding)
		violation(9, "a second request with one outstanding may get another's payload");
	if (header.type == XS_TRANSACTION_START) {
		t = allocate(sizeof(*t));
		t->generation = f->kernel->generation;
		t->next = f->transactions;
		f->transactions = t;
	} else if (header.tx_id && !*p) {
		answer_buffer(f, XS_ERROR, "ENOENT");
		return 0;
	} else if (header.type == XS_TRANSACTION_END) {
		if (header.len != 2 || body[1] || (body[0] != 'T' && body[0] != 'F')) {
			answer_buffer(f, XS_ERROR, "EINVAL");
			return 0;
		}
		if (*p && (*p)->generation != f->kernel->generation) {
			forget_transaction(p);
			if (body[0] == 'T')
				answer_buffer(f, XS_ERROR, "EAGAIN");
			else
				answer_buffer(f, XS_TRANSACTION_END, "OK");
			return 0;
		}
	}
	f->outstanding++;
	r = queue_request(f->kernel, f, header, NULL);
	return modes & OLD ? wait_for(to_wait_for(r)) : 0;
}

/* Rule 12. */
static ssize_t write_device(struct file *f, const char *data, size_t len)
{
	struct xsd_sockmsg header;
	char *body = f->buffer.bytes + sizeof(header);
	int error;

	if (len > sizeof(f->buffer) - f->len) {
		f->len = 0;
		return len ? -EINVAL : 0;
	}
	memcpy(f->buffer.bytes + f->len, data, len);
	f->len += len;
	if (!len || f->len < sizeof(header))
		return len;
	header = f->buffer.header;
	if (header.len > sizeof(f->buffer) - sizeof(header)) {
		f->len = 0;
		return -E2BIG;
	}
	if (f->len < sizeof(header) + header.len)
		return len;
	if (header.type == XS_WATCH || header.type == XS_UNWATCH)
		error = write_watch(f, header.type, body, header.len);
	else
		error = write_request(f, header, body);
	f->len = 0;
	return error ?: (ssize_t)len;
}

/* ---- FreeBSD's: each returns an errno, which becomes an ERROR ---- */

static int watch_freebsd(struct file *f, uint32_t type, char *body, size_t len)
{
	char *token = memchr(body, 0, len);
	struct watch *w;

	if (!token++ || !memchr(token, 0, len - (token - body)))
		return EINVAL;
	for (w = f->kernel->watches; w; w = w->next)
		if (w->file == f && !strcmp(w->token, token))
			break;
	if (type == XS_WATCH)
		return w ? EINVAL : -set_watch(f, body, token);
	if (!w)
		return EINVAL;
	end_watch(f, w);
	acknowledge(f, XS_UNWATCH);
	return 0;
}

static int request_freebsd(struct file *f, struct xsd_sockmsg header)
{
	struct transaction *t, **p = find_transaction(f, header.tx_id);

	if (header.tx_id && !*p)
		return EINVAL;
	if (header.type == XS_TRANSACTION_END && !*p)
		violation(15, "TRANSACTION_END without a transaction takes FreeBSD's kernel with it");
	if (header.type == XS_TRANSACTION_START) {
		t = allocate(sizeof(*t));
		t->next = f->transactions;
		f->transactions = t;
	}
	return -wait_for(to_wait_for(queue_request(f->kernel, f, header, NULL)));
}

static ssize_t write_freebsd(struct file *f, const char *data, size_t len)
{
	struct xsd_sockmsg header;
	int error;

	if (len > sizeof(f->buffer) - f->len)
		return -EINVAL;
	memcpy(f->buffer.bytes + f->len, data, len);
	f->len += len;
	header = f->buffer.header;
	if (f->len < sizeof(header) + header.len)
		return len;
	switch (header.type) {
	case XS_WATCH:
	case XS_UNWATCH:
		f->buffer.header.tx_id = 0;
		error = watch_freebsd(f, header.type, f->buffer.bytes + sizeof(header), header.len);
		break;
	case XS_DIRECTORY:
	case XS_READ:
	case XS_GET_PERMS:
	case XS_TRANSACTION_START:
	case XS_TRANSACTION_END:
	case XS_RELEASE:
	case XS_GET_DOMAIN_PATH:
	case XS_WRITE:
	case XS_MKDIR:
	case XS_RM:
	case XS_SET_PERMS:
		error = request_freebsd(f, header);
		break;
	default:
		error = EINVAL;
	}
	if (error)
		answer_buffer(f, XS_ERROR, name_of(error));
	f->len = 0;
	return len;
}

#pragma GCC visibility push(default)

/* ---- libc ---- */

ssize_t read(int fd, void *data, size_t len)
{
	struct file *f = enter(fd);

	if (!f)
		return syscall(SYS_read, fd, data, len);
	return leave(f, f->freebsd ? read_freebsd(f, data, len) : read_device(f, data, len));
}

ssize_t write(int fd, const void *data, size_t len)
{
	struct file *f = enter(fd);
	ssize_t n;

	if (!f)
		return syscall(SYS_write, fd, data, len);
	while (f->writing)
		pthread_cond_wait(&news, &lock);
	f->writing = true;
	n = f->freebsd ? write_freebsd(f, data, len) : write_device(f, data, len);
	f->writing = false;
	pthread_cond_broadcast(&news);
	return leave(f, n);
}

/* The device does these piece by piece. */
static ssize_t pieces(int fd, const struct iovec *iov, int count, bool writes)
{
	ssize_t n, total = 0;

	for (; count > 0; count--, iov++) {
		if (!iov->iov_len)
			continue;
		n = writes ? write(fd, iov->iov_base, iov->iov_len)
			   : read(fd, iov->iov_base, iov->iov_len);
		if (n < 0)
			return total ?: -1;
		total += n;
		if ((size_t)n < iov->iov_len)
			break;
	}
	return total;
}

static bool is_device(int fd)
{
	return fd >= 0 && fd < NFILES && __atomic_load_n(&files[fd], __ATOMIC_RELAXED);
}

ssize_t readv(int fd, const struct iovec *iov, int count)
{
	return is_device(fd) ? pieces(fd, iov, count, false) : syscall(SYS_readv, fd, iov, count);
}

ssize_t writev(int fd, const struct iovec *iov, int count)
{
	return is_device(fd) ? pieces(fd, iov, count, true) : syscall(SYS_writev, fd, iov, count);
}

/* A child of vfork() closes the parent's descriptors while it has the parent's memory. */
static void forget(int fd)
{
	if (!is_device(fd) || owner != getpid())
		return;
	pthread_mutex_lock(&lock);
	if (files[fd] && files[fd] != &inherited)
		put_user(files[fd]);
	files[fd] = NULL;
	pthread_mutex_unlock(&lock);
}

int close(int fd)
{
	forget(fd);
	return syscall(SYS_close, fd);
}

static int duplicated(int from, int to)
{
	if (to < 0 || to >= NFILES || from == to || owner != getpid())
		return to;
	forget(to);
	pthread_mutex_lock(&lock);
	if (from >= 0 && from < NFILES && files[from]) {
		files[to] = files[from];
		files[to]->users++;
	}
	pthread_mutex_unlock(&lock);
	return to;
}

int dup(int fd)
{
	return duplicated(fd, syscall(SYS_dup, fd));
}

int dup2(int fd, int to)
{
	/* There is no SYS_dup2 everywhere, and SYS_dup3 refuses this. */
	return fd == to ? (fcntl(fd, F_GETFD) < 0 ? -1 : to)
			: duplicated(fd, syscall(SYS_dup3, fd, to, 0));
}

int dup3(int fd, int to, int flags)
{
	return duplicated(fd, syscall(SYS_dup3, fd, to, flags));
}

int fcntl(int fd, int command, ...)
{
	va_list ap;
	void *argument;
	int result;

	va_start(ap, command);
	argument = va_arg(ap, void *);
	va_end(ap);
	result = syscall(SYS_fcntl, fd, command, argument);
	if (command == F_DUPFD || command == F_DUPFD_CLOEXEC)
		return duplicated(fd, result);
	return result;
}

int fcntl64(int fd, int command, ...) __attribute__((alias("fcntl")));

/* The socket behind a path, or NULL if that is no device's. */
static const char *socket_of(const char *path, char buf[PATH_MAX])
{
	const char *device = getenv("XENBUS_DEVICE") ?: "/dev/xen/xenbus";
	size_t len = strlen(path), suffix = strlen(SUFFIX);

	if (!strcmp(path, device))
		return getenv("XENBUS_SOCKET");
	if (len <= suffix || len >= PATH_MAX || strcmp(path + len - suffix, SUFFIX))
		return NULL;
	memcpy(buf, path, len - suffix);
	buf[len - suffix] = 0;
	return buf;
}

static int open_at(int directory, const char *path, int flags, mode_t mode)
{
	char buf[PATH_MAX];
	const char *socket = socket_of(path, buf);

	return socket ? open_device(socket, flags)
		      : (int)syscall(SYS_openat, directory, path, flags, mode);
}

#define MODE_OF(flags) __extension__({				\
	va_list ap;						\
	mode_t mode = 0;					\
	va_start(ap, flags);					\
	if (flags & (O_CREAT | __O_TMPFILE))			\
		mode = va_arg(ap, int);				\
	va_end(ap);						\
	mode;							\
})

int open(const char *path, int flags, ...)
{
	return open_at(AT_FDCWD, path, flags, MODE_OF(flags));
}

int openat(int directory, const char *path, int flags, ...)
{
	return open_at(directory, path, flags, MODE_OF(flags));
}

int open64(const char *path, int flags, ...) __attribute__((alias("open")));
int openat64(int directory, const char *path, int flags, ...) __attribute__((alias("openat")));

/* ---- controls ---- */

/* Set all modes anew; -1 if a name is none. */
int fake_device_modes(const char *list)
{
	const size_t n = sizeof(mode_names) / sizeof(mode_names[0]);
	unsigned int new = 0;
	struct kernel *k;
	size_t i, len;

	for (; *list; list += len + (list[len] == ',')) {
		len = strcspn(list, ",");
		for (i = 0; i < n; i++)
			if (strlen(mode_names[i]) == len && !strncmp(list, mode_names[i], len))
				break;
		if (i == n)
			return -1;
		new |= 1 << i;
	}
	pthread_mutex_lock(&lock);
	modes = new;
	for (k = kernels; k; k = k->next)
		wake(k);
	pthread_mutex_unlock(&lock);
	return 0;
}

/*
 * Have the domain suspended and resumed; return when all watches are set again.
 * As in Linux that waits till all requests are answered.
 */
int fake_device_suspend(const char *device)
{
	char buf[PATH_MAX];
	const char *socket = socket_of(device, buf);
	uint32_t generation;
	struct kernel *k;

	pthread_mutex_lock(&lock);
	for (k = kernels; k && (!socket || strcmp(k->socket, socket)); k = k->next)
		;
	if (k) {
		generation = k->generation;
		k->suspending = true;
		k->nfiles++;		/* it stays */
		wake(k);
		while (k->generation == generation || (k->daemon >= 0 && k->rewatching))
			pthread_cond_wait(&news, &lock);
		k->nfiles--;
	}
	pthread_mutex_unlock(&lock);
	return k ? 0 : -1;
}

#pragma GCC visibility pop

static void before_fork(void)
{
	pthread_mutex_lock(&lock);
}

static void in_parent(void)
{
	pthread_mutex_unlock(&lock);
}

/* The child has no thread; what it opens is a new kernel's. */
static void in_child(void)
{
	int fd;

	for (fd = 0; fd < NFILES; fd++)
		if (files[fd])
			files[fd] = &inherited;
	/* Or the daemon would not notice when the parent ends. */
	for (; kernels; kernels = kernels->next) {
		syscall(SYS_close, kernels->daemon);
		syscall(SYS_close, kernels->wake);
	}
	owner = getpid();
	pthread_cond_init(&news, NULL);
	pthread_mutex_unlock(&lock);
}

__attribute__((constructor)) static void start(void)
{
	owner = getpid();
	pthread_atfork(before_fork, in_parent, in_child);
	if (fake_device_modes(getenv("XENBUS_MODES") ?: "")) {
		dprintf(2, "fake XenBus device: XENBUS_MODES has a name that is none\n");
		_exit(1);
	}
}
