/* kernel.c - what is behind all descriptors of the fake device: see fake_device.h. */
#undef _FORTIFY_SOURCE
#define _GNU_SOURCE
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "fake_device.h"

#define SLOW_MS 20			/* how long "slow" keeps a request */
#define FIRST_EVENT_MS 200		/* some daemons drop an event that is too long */

pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
pthread_cond_t news = PTHREAD_COND_INITIALIZER;
struct kernel *kernels;
unsigned int modes;

void violation(int rule, const char *what)
{
	const char *report = getenv("XENBUS_REPORT");
	int fd = report ? syscall(SYS_openat, AT_FDCWD, report, O_WRONLY | O_CREAT | O_APPEND, 0600)
			: -1;

	dprintf(2, "fake XenBus device: rule %d: %s\n", rule, what);
	if (fd >= 0)
		dprintf(fd, "fake XenBus device: rule %d: %s\n", rule, what);
	abort();
}

void *allocate(size_t size)
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

void wake(struct kernel *k)
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

struct request *queue_request(struct kernel *k, struct file *f, struct xsd_sockmsg header,
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
struct request *queue_own(struct kernel *k, struct file *f, uint32_t type, uint32_t tx_id,
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

static void make_readable(struct file *f)
{
	if (f->readable)
		return;
	f->readable = true;
	syscall(SYS_write, f->out, "", 1);
}

/* FreeBSD does not look whether there is room. */
static void produce(struct file *f, const char *data, size_t len)
{
	size_t i;

	for (i = 0; i < len; i++)
		f->ring[f->produced++ % sizeof(f->ring)] = data[i];
}

static void queue_message(struct file *f, struct xsd_sockmsg header, const char *body,
			  bool answers)
{
	struct message *m;

	if (!f->users)
		return;			/* nobody can read it */
	if (f->freebsd) {
		produce(f, (const char *)&header, sizeof(header));
		produce(f, body, header.len);
		make_readable(f);
		return;
	}
	m = allocate(sizeof(*m) + sizeof(header) + header.len);
	m->answers = answers;
	m->size = sizeof(header) + header.len;
	memcpy(m->data, &header, sizeof(header));
	memcpy(m->data + sizeof(header), body, header.len);
	*f->tail = m;
	f->tail = &m->next;
	make_readable(f);
}

static void answer(struct file *f, uint32_t type, const char *body, size_t len)
{
	struct xsd_sockmsg header = f->buffer.header;

	if (modes & OLD && (type == XS_WATCH || type == XS_UNWATCH))
		header.req_id = header.tx_id = 0;
	else if (modes & WRONG_IDS)
		header.req_id--;
	header.type = type;
	header.len = len;
	queue_message(f, header, body, false);
}

/* The kernel's own answer to the message in the buffer. */
void answer_buffer(struct file *f, uint32_t type, const char *text)
{
	answer(f, type, text, strlen(text) + 1);
}

/* The answer to the WATCH or UNWATCH in the buffer: FreeBSD's has the size of a pointer. */
void acknowledge(struct file *f, uint32_t type)
{
	static const char memory[8] = "OK\0xs_de";

	answer(f, type, memory, f->freebsd ? sizeof(memory) : sizeof("OK"));
}

/* ---- files ---- */

struct transaction **find_transaction(struct file *f, uint32_t id)
{
	struct transaction **p;

	for (p = &f->transactions; *p && (*p)->id != id; p = &(*p)->next)
		;
	return p;
}

void forget_transaction(struct transaction **p)
{
	struct transaction *t = *p;

	*p = t->next;
	free(t);
}

void forget_watch(struct kernel *k, struct watch *w)
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
void put(struct file *f)
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

/* ---- the kernel's thread: what comes from the daemon ---- */

static int errno_of(const char *name)
{
	size_t i;

	for (i = 0; i < sizeof(xsd_errors) / sizeof(xsd_errors[0]); i++)
		if (!strcmp(name, xsd_errors[i].errstring))
			return xsd_errors[i].errnum;
	return EINVAL;			/* oxenstored's EQUOTA is one */
}

const char *name_of(int error)
{
	size_t i;

	for (i = 0; i < sizeof(xsd_errors) / sizeof(xsd_errors[0]); i++)
		if (xsd_errors[i].errnum == error)
			return xsd_errors[i].errstring;
	return "EINVAL";
}

void free_request(struct request *r)
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
	acknowledge(r->file, XS_WATCH);
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
		/* FreeBSD takes an error's name for the id 0. */
		if (type == XS_ERROR && !r->file->freebsd)
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
		return fd;
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
 * The daemon may be back: it gets what was not sent to the one before, knows no
 * watch, and does not answer what that one was asked.
 */
static void find_again(struct kernel *k)
{
	const char *number = k->socket + strlen(k->socket);

	/* A guest that was released stays so: the toolstack must introduce it. */
	while (number > k->socket && isdigit((unsigned char)number[-1]))
		number--;
	if (atoi(number) != 0)
		return;
	k->daemon = connect_to(k->socket);
	if (k->daemon >= 0)
		k->in_len = k->out_len = k->out_done = 0;
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
		if (k->daemon < 0 && !(modes & DEAD))
			find_again(k);
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

/* NULL, with errno: there is no such socket, or no descriptor for it is left. */
struct kernel *find_kernel(const char *path)
{
	struct kernel *k;
	pthread_t thread;
	sigset_t all, old;
	struct stat st;
	int daemon, wake;

	for (k = kernels; k; k = k->next)
		if (!strcmp(k->socket, path))
			return k;
	errno = ENOENT;
	if (stat(path, &st) || !S_ISSOCK(st.st_mode))
		return NULL;
	wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (wake < 0)
		return NULL;
	daemon = connect_to(path);	/* if there is none, it has died (rule 16) */
	if (daemon < 0 && errno == EMFILE) {
		syscall(SYS_close, wake);
		errno = EMFILE;
		return NULL;
	}
	k = allocate(sizeof(*k));
	k->socket = strdup(path);
	k->wake = wake;
	k->daemon = daemon;
	k->queued.tail = &k->queued.head;
	k->sent.tail = &k->sent.head;
	k->next = kernels;
	kernels = k;
	k->nfiles = 1;			/* or the thread might end at once */
	/* Signals are for the program's threads. */
	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, &old);
	if (pthread_create(&thread, NULL, run, k))
		abort();
	pthread_detach(thread);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	k->nfiles = 0;
	return k;
}
