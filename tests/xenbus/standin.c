/*
 * standin.c - Linux' XenBus device, as an LD_PRELOAD library, for programs on a
 * machine without Xen: an opened device path behaves as /dev/xen/xenbus was
 * measured to, and talks to a XenStore daemon's Unix socket.
 *
 * A device path is "SOCKET.xenbus", for any SOCKET, and also $XENBUS_DEVICE
 * (default /dev/xen/xenbus) if $XENBUS_SOCKET names a socket.  Whether there is
 * a file of that name is not asked; tests make one, for os.path.exists().
 *
 * Like a kernel, the library has one connection to each daemon, shared by all
 * descriptors of the process, and one thread that uses it: all requests are
 * queued for that.  The numbers of rules are those of "XenBus device" in the
 * documentation of this directory's __init__.py.
 *
 * What would take a real machine's kernel with it, and an answer that no test
 * could wait for, is reported on stderr, "xenbus stand-in: rule N: ...", and
 * ends the process with SIGABRT:
 *   rule 10  WATCH, or UNWATCH of a set watch, with a request outstanding
 *   rule 11  read() of 0 bytes with data queued
 *   rule 15  RESET_WATCHES
 *   rule 9   a second request with one outstanding; in the mode "strict" only
 * A request is outstanding till the first byte of its answer has been read.
 * (The kernel's own limit is earlier, when it has the answer; but the program
 * cannot know when that is.)
 *
 * $XENBUS_MODES, or xenbus_standin_modes() at run time, is a list of
 *   event-first, ack-first   the order of a WATCH's answer and its first event;
 *                            by default they alternate
 *   old-kernel   before Linux 4.11: the ids in the answer to WATCH are 0, and
 *                write() waits for the answer of any request
 *   wrong-ids    answers bear the id of the request before
 *   slow         requests stay in the queue for a while, so that whoever
 *                overwrites a payload (rule 9) will see it
 *   strict       see above
 *   dead         the daemon is dead: no request leaves the queue.  (A daemon
 *                that really dies has the same effect, for good.)
 *
 * Found by dlsym(): int xenbus_standin_modes(const char *list);
 *                   int xenbus_standin_suspend(const char *device);
 *
 * Limits: a descriptor is a FIFO to fstat(); an inherited one can be closed in
 * a child process, and is a violation when used; over exec() it is lost; so is
 * one that close_range() closes.  Not emulated: permissions, access modes, the
 * limits of a ring other than that of 4096 bytes.
 *
 * Build: gcc -O2 -shared -fPIC -pthread -o standin.so standin.c   (needs libxen-dev)
 */
#undef _FORTIFY_SOURCE
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <xen/io/xs_wire.h>

#define NFILES 65536
#define SUFFIX ".xenbus"
#define SLOW_MS 20			/* how long "slow" keeps a request */
#define FIRST_EVENT_MS 200		/* some daemons drop an event that is too long */

struct file;

struct message {			/* something to be read */
	struct message *next;
	bool answers;			/* a request that was outstanding */
	size_t taken, size;
	char data[];
};

struct transaction {
	struct transaction *next;
	uint32_t id, generation;	/* id 0: not answered yet */
};

struct watch {
	struct watch *next;
	struct file *file;
	struct request *first;		/* the WATCH, if it waits for the first event */
	char *path, *token;		/* as the program gave them */
	char serial[24];		/* the token that the daemon sees */
};

struct request {
	struct request *next;
	struct file *file;		/* whose it is; NULL: the answer is ignored */
	struct watch *watch;		/* of a WATCH or UNWATCH */
	struct xsd_sockmsg header;
	uint32_t caller_id;
	char *body;			/* NULL: what the file's buffer has when it is sent */
	bool waited, done;		/* whether write() waits, and need not any more */
	int error;
	int64_t since;			/* ms: when it was queued, or began to wait for the event */
};

struct queue { struct request *head, **tail; };

struct kernel {
	struct kernel *next;
	char *socket;
	int daemon, wake;		/* descriptors; daemon is -1 when it is dead */
	int nfiles;
	uint32_t last_id, generation;
	bool suspending, last_was_first;
	int rewatching;
	int awaiting_first;		/* WATCHes that do */
	struct queue queued, sent;
	struct watch *watches;
	char out[sizeof(struct xsd_sockmsg) + XENSTORE_PAYLOAD_MAX];
	size_t out_len, out_done;
	char *in;
	size_t in_len, in_size;
};

struct file {
	struct kernel *kernel;
	int users;			/* descriptors and calls */
	int refs;			/* requests, and one while there are users */
	int in, out;			/* a pipe: a byte is in it while there are messages */
	bool readable;			/* that byte is there, or with a reader */
	bool writing;			/* some write() has the buffer */
	int outstanding;
	struct message *head, **tail;
	struct transaction *transactions;
	size_t len;
	union {
		struct xsd_sockmsg header;
		char bytes[XENSTORE_PAYLOAD_MAX];
	} buffer;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;	/* for everything below */
static pthread_cond_t news = PTHREAD_COND_INITIALIZER;
static struct file *files[NFILES];	/* by descriptor */
static struct file inherited;		/* in a child process, what the parent had open */
static struct kernel *kernels;
static pid_t owner;
static unsigned int modes;

enum { EVENT_FIRST = 1, ACK_FIRST = 2, OLD = 4, WRONG_IDS = 8, SLOW = 16, STRICT = 32, DEAD = 64 };

static const char *const mode_names[] = {
	"event-first", "ack-first", "old-kernel", "wrong-ids", "slow", "strict", "dead",
};

static void violation(int rule, const char *what)
{
	dprintf(2, "xenbus stand-in: rule %d: %s\n", rule, what);
	abort();
}

static void *allocate(size_t size)
{
	void *p = calloc(1, size);

	if (!p)
		abort();
	return p;
}

static int64_t now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000LL + ts.tv_nsec / 1000000;
}

static void wake(struct kernel *k)
{
	uint64_t one = 1;

	syscall(SYS_write, k->wake, &one, sizeof(one));
}

/* ---- queues of requests ---- */

static void append(struct queue *q, struct request *r)
{
	r->next = NULL;
	*q->tail = r;
	q->tail = &r->next;
}

static struct request *take(struct queue *q, uint32_t id)
{
	struct request **p, *r;

	for (p = &q->head; (r = *p); p = &r->next)
		if (r->header.req_id == id) {
			*p = r->next;
			if (!r->next)
				q->tail = p;
			return r;
		}
	return NULL;
}

static struct request *queue_request(struct kernel *k, struct file *f, struct xsd_sockmsg header,
				     char *body)
{
	struct request *r = allocate(sizeof(*r));

	if (f)
		f->refs++;
	r->file = f;
	r->header = header;
	r->caller_id = header.req_id;
	/* Whatever ids the programs use, the kernel's own are those on the wire. */
	r->header.req_id = ++k->last_id;
	r->body = body;
	r->since = now();
	append(&k->queued, r);
	wake(k);
	return r;
}

/* Queue something that the kernel itself wants, with one or two strings for a body. */
static struct request *queue_own(struct kernel *k, struct file *f, uint32_t type, uint32_t tx_id,
				 const char *one, const char *two)
{
	size_t len = strlen(one) + 1, more = two ? strlen(two) + 1 : 0;
	struct xsd_sockmsg header = { .type = type, .tx_id = tx_id, .len = len + more };
	char *body = allocate(len + more);

	memcpy(body, one, len);
	memcpy(body + len, two ?: "", more);
	return queue_request(k, f, header, body);
}

/* ---- messages to be read ---- */

static void queue_message(struct file *f, struct xsd_sockmsg header, const char *body,
			  bool answers)
{
	struct message *m;

	if (!f->users)
		return;			/* nobody can read it */
	m = allocate(sizeof(*m) + sizeof(header) + header.len);
	m->answers = answers;
	m->size = sizeof(header) + header.len;
	memcpy(m->data, &header, sizeof(header));
	memcpy(m->data + sizeof(header), body, header.len);
	*f->tail = m;
	f->tail = &m->next;
	if (!f->readable) {
		f->readable = true;
		syscall(SYS_write, f->out, "", 1);
	}
}

/* The kernel's own answer to the message in the buffer. */
static void answer_buffer(struct file *f, uint32_t type, const char *text)
{
	struct xsd_sockmsg header = f->buffer.header;

	if (modes & OLD && (type == XS_WATCH || type == XS_UNWATCH))
		header.req_id = header.tx_id = 0;
	else if (modes & WRONG_IDS)
		header.req_id--;
	header.type = type;
	header.len = strlen(text) + 1;
	queue_message(f, header, text, false);
}

/* ---- files ---- */

static struct transaction **find_transaction(struct file *f, uint32_t id)
{
	struct transaction **p;

	for (p = &f->transactions; *p && (*p)->id != id; p = &(*p)->next)
		;
	return p;
}

static void forget_transaction(struct transaction **p)
{
	struct transaction *t = *p;

	*p = t->next;
	free(t);
}

static void forget_watch(struct kernel *k, struct watch *w)
{
	struct watch **p;

	for (p = &k->watches; *p != w; p = &(*p)->next)
		;
	*p = w->next;
	free(w->path);
	free(w->token);
	free(w);
}

/*
 * To be called with the lock held, as all of these.  Linux, too, waits for the
 * answers, and ends each transaction by its id, even one from before a suspend,
 * whose id may be another's by now.
 */
static void put(struct file *f)
{
	struct kernel *k = f->kernel;
	struct watch *w, *next;

	if (--f->refs)
		return;
	while (f->transactions) {
		if (f->transactions->id)
			queue_own(k, NULL, XS_TRANSACTION_END, f->transactions->id, "F", NULL);
		forget_transaction(&f->transactions);
	}
	for (w = k->watches; w; w = next) {
		next = w->next;
		if (w->file == f) {
			queue_own(k, NULL, XS_UNWATCH, 0, w->path, w->serial);
			forget_watch(k, w);
		}
	}
	free(f);
}

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

/* ---- the kernel's thread: what comes from the daemon ---- */

static int errno_of(const char *name)
{
	size_t i;

	for (i = 0; i < sizeof(xsd_errors) / sizeof(xsd_errors[0]); i++)
		if (!strcmp(name, xsd_errors[i].errstring))
			return xsd_errors[i].errnum;
	return EINVAL;			/* oxenstored's EQUOTA is one */
}

static void free_request(struct request *r)
{
	if (r->file)
		put(r->file);
	free(r->body);
	free(r);
}

static void finish(struct request *r)
{
	if (!r->waited) {
		free_request(r);
		return;
	}
	r->done = true;
	pthread_cond_broadcast(&news);
}

static void acknowledge_watch(struct kernel *k, struct request *r)
{
	k->awaiting_first -= r->watch->first == r;
	r->watch->first = NULL;
	answer_buffer(r->file, XS_WATCH, "OK");
	finish(r);
}

static void handle_event(struct kernel *k, struct xsd_sockmsg header, const char *body)
{
	const char *serial = memchr(body, 0, header.len);
	size_t path_len, token_len;
	struct watch *w;
	char *both;

	/* On a ring there is none that long. */
	if (!serial++ || header.len > XENSTORE_PAYLOAD_MAX)
		return;
	for (w = k->watches; w && strcmp(w->serial, serial); w = w->next)
		;
	if (!w)
		return;
	path_len = serial - body;
	token_len = strlen(w->token) + 1;
	header.len = path_len + token_len;
	/* Rule 14: nobody sets the ids of an event, so that they may be anything. */
	if (modes & WRONG_IDS)
		header.req_id = header.tx_id = 0x5aa55aa5;
	both = allocate(header.len);
	memcpy(both, body, path_len);
	memcpy(both + path_len, w->token, token_len);
	queue_message(w->file, header, both, false);
	free(both);
	if (w->first)
		acknowledge_watch(k, w->first);
}

/* Rule 15: the answer to a TRANSACTION_END without a transaction is lost. */
static bool transaction_is_known(struct request *r, uint32_t type, const char *body)
{
	struct transaction **p;

	if (r->header.type == XS_TRANSACTION_START) {
		p = find_transaction(r->file, 0);
		if (!*p)
			return false;
		if (type == XS_ERROR)
			forget_transaction(p);
		else
			(*p)->id = strtoul(body, NULL, 10);
	} else if (r->header.type == XS_TRANSACTION_END) {
		p = find_transaction(r->file, r->header.tx_id);
		if (!*p)
			return false;
		forget_transaction(p);
	}
	return true;
}

static void handle_reply(struct kernel *k, struct xsd_sockmsg header, const char *body)
{
	struct request *r = take(&k->sent, header.req_id);

	if (!r)
		return;
	/* A ring's daemon has to say so itself. */
	if (header.len > XENSTORE_PAYLOAD_MAX) {
		header.type = XS_ERROR;
		header.len = sizeof("E2BIG");
		body = "E2BIG";
	}
	if (!r->file) {
		if (r->header.type == XS_WATCH && !--k->rewatching)
			pthread_cond_broadcast(&news);
		free_request(r);
		return;
	}
	if (r->watch) {
		if (header.type == XS_ERROR) {
			r->error = errno_of(body);
			finish(r);
		} else if (r->header.type == XS_UNWATCH) {
			finish(r);
		} else {
			k->last_was_first = !(modes & ACK_FIRST) &&
					    (modes & EVENT_FIRST || !k->last_was_first);
			if (k->last_was_first) {
				r->watch->first = r;
				r->since = now();
				k->awaiting_first++;
			} else {
				acknowledge_watch(k, r);
			}
		}
		return;
	}
	if (transaction_is_known(r, header.type, body)) {
		header.req_id = r->caller_id - !!(modes & WRONG_IDS);
		header.tx_id = r->header.tx_id;
		queue_message(r->file, header, body, true);
	} else {
		r->file->outstanding--;
	}
	finish(r);
}

/* Whether all is well with the daemon. */
static bool receive(struct kernel *k)
{
	struct xsd_sockmsg header;
	size_t done = 0;
	ssize_t n;
	char *body;

	if (k->in_size - k->in_len < 65536) {
		k->in_size += 65536;
		k->in = realloc(k->in, k->in_size);
		if (!k->in)
			abort();
	}
	n = recv(k->daemon, k->in + k->in_len, k->in_size - k->in_len, MSG_DONTWAIT);
	if (n <= 0)
		return n < 0 && (errno == EAGAIN || errno == EINTR);
	k->in_len += n;
	while (k->in_len - done >= sizeof(header)) {
		memcpy(&header, k->in + done, sizeof(header));
		if (k->in_len - done < sizeof(header) + header.len)
			break;
		/* Its strings end, whatever a daemon sends. */
		body = allocate(header.len + 1);
		memcpy(body, k->in + done + sizeof(header), header.len);
		if (header.type == XS_WATCH_EVENT)
			handle_event(k, header, body);
		else
			handle_reply(k, header, body);
		free(body);
		done += sizeof(header) + header.len;
	}
	k->in_len -= done;
	memmove(k->in, k->in + done, k->in_len);
	return true;
}

/* ---- the kernel's thread: what goes to the daemon ---- */

/* How many ms from now the next request may be sent; -1: there is none. */
static int next_due(struct kernel *k)
{
	int64_t left = 0;

	if (!k->queued.head || k->suspending)
		return -1;
	if (modes & SLOW)
		left = k->queued.head->since + SLOW_MS - now();
	return left > 0 ? left : 0;
}

/*
 * Rule 9: of a request its header was kept when it was written, but its payload
 * is taken from the descriptor's buffer only now.
 */
static void build(struct kernel *k)
{
	struct request *r = k->queued.head;
	const char *body = r->body ?: r->file->buffer.bytes + sizeof(r->header);

	take(&k->queued, r->header.req_id);
	append(&k->sent, r);
	memcpy(k->out, &r->header, sizeof(r->header));
	memcpy(k->out + sizeof(r->header), body, r->header.len);
	k->out_len = sizeof(r->header) + r->header.len;
	k->out_done = 0;
}

static bool send_queued(struct kernel *k)
{
	ssize_t n;

	for (;;) {
		if (k->out_done == k->out_len) {
			if (next_due(k))
				return true;
			build(k);
		}
		n = send(k->daemon, k->out + k->out_done, k->out_len - k->out_done,
			 MSG_DONTWAIT | MSG_NOSIGNAL);
		if (n < 0)
			return errno == EAGAIN || errno == EINTR;
		k->out_done += n;
	}
}

static int connect_to(const char *path)
{
	struct sockaddr_un un = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -1;
	strncpy(un.sun_path, path, sizeof(un.sun_path) - 1);
	if (!connect(fd, (struct sockaddr *)&un, sizeof(un)))
		return fd;
	syscall(SYS_close, fd);
	return -1;
}

/* Rule 16: nobody is told. */
static void daemon_died(struct kernel *k)
{
	syscall(SYS_close, k->daemon);
	k->daemon = -1;
}

/*
 * The domain was suspended, and is resumed: the daemon knows nothing of it any
 * more, so that the kernel sets all watches again, and each fires.
 */
static void resume(struct kernel *k)
{
	struct watch *w;

	if (k->daemon >= 0)
		syscall(SYS_close, k->daemon);
	k->daemon = connect_to(k->socket);
	k->in_len = k->out_len = k->out_done = 0;
	k->generation++;
	k->suspending = false;
	for (w = k->watches; w; w = w->next) {
		queue_own(k, NULL, XS_WATCH, 0, w->path, w->serial);
		k->rewatching++;
	}
	pthread_cond_broadcast(&news);
}

static void free_kernel(struct kernel *k)
{
	struct kernel **p;
	struct queue *queues[] = { &k->queued, &k->sent };
	struct request *r;
	int i;

	for (p = &kernels; *p != k; p = &(*p)->next)
		;
	*p = k->next;
	for (i = 0; i < 2; i++)
		while ((r = queues[i]->head)) {
			queues[i]->head = r->next;
			free(r->body);
			free(r);
		}
	syscall(SYS_close, k->wake);
	free(k->socket);
	free(k->in);
	free(k);
}

static void *run(void *kernel)
{
	struct kernel *k = kernel;
	struct watch *w;
	uint64_t count;

	pthread_mutex_lock(&lock);
	for (;;) {
		struct pollfd fds[] = {
			{ .fd = k->wake, .events = POLLIN },
			{ .fd = modes & DEAD ? -1 : k->daemon, .events = POLLIN },
		};
		int timeout = modes & DEAD ? -1 : next_due(k);

		if (k->out_done < k->out_len) {
			fds[1].events |= POLLOUT;
			timeout = -1;
		}
		if (k->awaiting_first)
			timeout = 10;
		if (k->daemon < 0 && !k->nfiles)
			break;
		if (k->daemon < 0)
			timeout = -1;
		pthread_mutex_unlock(&lock);
		poll(fds, 2, timeout);
		pthread_mutex_lock(&lock);
		if (fds[0].revents)
			syscall(SYS_read, k->wake, &count, sizeof(count));
		for (w = k->awaiting_first ? k->watches : NULL; w; w = w->next)
			if (w->first && now() > w->first->since + FIRST_EVENT_MS)
				acknowledge_watch(k, w->first);
		if (k->suspending && (!k->sent.head || k->daemon < 0))
			resume(k);
		if (modes & DEAD || k->daemon < 0)
			continue;
		if ((fds[1].revents & ~POLLOUT && !receive(k)) || !send_queued(k))
			daemon_died(k);
	}
	free_kernel(k);
	pthread_mutex_unlock(&lock);
	return NULL;
}

static struct kernel *find_kernel(const char *path)
{
	struct kernel *k;
	pthread_t thread;
	sigset_t all, old;

	for (k = kernels; k; k = k->next)
		if (!strcmp(k->socket, path))
			return k;
	if (access(path, F_OK))
		return NULL;
	k = allocate(sizeof(*k));
	k->socket = strdup(path);
	k->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	k->daemon = connect_to(path);
	k->queued.tail = &k->queued.head;
	k->sent.tail = &k->sent.head;
	k->next = kernels;
	kernels = k;
	k->nfiles = 1;			/* or the thread might end at once */
	/* Signals are for the program's threads. */
	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, &old);
	if (k->wake < 0 || pthread_create(&thread, NULL, run, k))
		abort();
	pthread_detach(thread);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	k->nfiles = 0;
	return k;
}

/* ---- what the program does to the device ---- */

/*
 * The program's descriptor is the reading end of a pipe: it has POLLIN while
 * there is a byte in it, never POLLOUT (rule 13), O_NONBLOCK and FIONBIO are the
 * pipe's own, and a signal interrupts, or restarts, a read() as it should.
 */
static int open_device(const char *socket, int flags)
{
	struct kernel *k;
	struct file *f;
	int fd, ends[2];

	pthread_mutex_lock(&lock);
	k = find_kernel(socket);
	if (!k) {
		pthread_mutex_unlock(&lock);
		errno = ENOENT;
		return -1;
	}
	if (pipe2(ends, O_CLOEXEC | (flags & O_NONBLOCK)))
		abort();
	fd = syscall(SYS_fcntl, ends[0], flags & O_CLOEXEC ? F_DUPFD_CLOEXEC : F_DUPFD, 0);
	if (fd < 0 || fd >= NFILES)
		abort();
	f = allocate(sizeof(*f));
	f->kernel = k;
	f->users = f->refs = 1;
	f->in = ends[0];
	f->out = ends[1];
	f->tail = &f->head;
	k->nfiles++;
	files[fd] = f;
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

/* Rule 14. */
static int write_watch(struct file *f, uint32_t type, char *body, size_t len)
{
	static const char *const deadlock =
		"WATCH or UNWATCH with a request outstanding on the descriptor dead-locks the kernel";
	static unsigned long serial = 0xffff888000000000;
	struct kernel *k = f->kernel;
	char *token = memchr(body, 0, len);
	struct request *r;
	struct watch *w;
	int error;

	if (!token++ || !memchr(token, 0, len - (token - body))) {
		answer_buffer(f, XS_ERROR, "EINVAL");
		return 0;
	}
	/* Rest of the body, a depth, is not looked at. */
	if (type == XS_WATCH) {
		if (f->outstanding)
			violation(10, deadlock);
		w = allocate(sizeof(*w));
		w->file = f;
		w->path = strdup(body);
		w->token = strdup(token);
		snprintf(w->serial, sizeof(w->serial), "%lX", serial += 64);
		if (strlen(body) + strlen(w->serial) + 2 > XENSTORE_PAYLOAD_MAX) {
			free(w->path);
			free(w->token);
			free(w);
			return -E2BIG;
		}
		w->next = k->watches;
		k->watches = w;
		r = to_wait_for(queue_own(k, f, XS_WATCH, 0, body, w->serial));
		r->watch = w;
		error = wait_for(r);
		if (error)
			forget_watch(k, w);
		return error;
	}
	for (w = k->watches; w; w = w->next)
		if (w->file == f && !strcmp(w->path, body) && !strcmp(w->token, token))
			break;
	if (w) {
		if (f->outstanding)
			violation(10, deadlock);
		r = to_wait_for(queue_own(k, f, XS_UNWATCH, 0, body, w->serial));
		r->watch = w;
		forget_watch(k, w);
		wait_for(r);
	}
	answer_buffer(f, XS_UNWATCH, "OK");
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

/* ---- libc ---- */

ssize_t read(int fd, void *data, size_t len)
{
	struct file *f = enter(fd);

	return f ? leave(f, read_device(f, data, len)) : syscall(SYS_read, fd, data, len);
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
	n = write_device(f, data, len);
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
int xenbus_standin_modes(const char *list)
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
int xenbus_standin_suspend(const char *device)
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
	if (xenbus_standin_modes(getenv("XENBUS_MODES") ?: "")) {
		dprintf(2, "xenbus stand-in: XENBUS_MODES has a name that is none\n");
		_exit(1);
	}
}
