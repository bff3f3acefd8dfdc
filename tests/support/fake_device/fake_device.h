/*
 * fake_device.h - Linux' XenBus device, as an LD_PRELOAD library, for programs on a
 * machine without Xen: an opened device path behaves as /dev/xen/xenbus was
 * measured to, and talks to a XenStore daemon's Unix socket.  In the mode
 * "freebsd" it is FreeBSD's device instead; that one was read, not measured.
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
 * could wait for, is reported on stderr and in the file $XENBUS_REPORT, if that
 * is set, as "fake XenBus device: rule N: ...", and ends the process with SIGABRT:
 *   rule 10  WATCH, or UNWATCH of a set watch, with a request outstanding
 *   rule 11  read() of 0 bytes with data queued
 *   rule 15  RESET_WATCHES
 *   rule 9   a second request with one outstanding; in the mode "strict" only
 * A request is outstanding till the first byte of its answer has been read.
 * (The kernel's own limit is earlier, when it has the answer; but the program
 * cannot know when that is.)
 *
 * $XENBUS_MODES, or fake_device_modes() at run time, is a list of
 *   event-first, ack-first   the order of a WATCH's answer and its first event;
 *                            by default they alternate
 *   old-kernel   before Linux 4.11: the ids in the answer to WATCH are 0, and
 *                write() waits for the answer of any request
 *   wrong-ids    answers bear the id of the request before
 *   slow         requests stay in the queue for a while, so that whoever
 *                overwrites a payload (rule 9) will see it
 *   strict       see above
 *   dead         the daemon is dead: no request leaves the queue.  (A daemon
 *                that really dies has the same effect, until
 *                there is one at its socket again.)
 *   freebsd      devices that are opened from now on are FreeBSD's, see below
 *
 * Found by dlsym(): int fake_device_modes(const char *list);
 *                   int fake_device_suspend(const char *device);
 *
 * FreeBSD's device, /dev/xen/xenstore, as its source says (sys/dev/xen/xenstore,
 * xenstore_dev.c and xenstore.c):
 *   - write() returns once the request is answered and the answer is queued.  What
 *     is wrong with a request is an ERROR to be read, and never an errno, but
 *     that of too many bytes: EINVAL, and what is there of a message stays.
 *   - It knows DIRECTORY, READ, GET_PERMS, WATCH, UNWATCH, TRANSACTION_START,
 *     TRANSACTION_END, RELEASE, GET_DOMAIN_PATH, WRITE, MKDIR, RM and SET_PERMS.
 *     Other types are EINVAL, as is a transaction of another descriptor.
 *   - A watch is known by its token alone: another one with the token is EINVAL,
 *     and UNWATCH takes no notice of the path.
 *   - The answers to WATCH and UNWATCH have eight bytes, "OK", a NUL and
 *     whatever comes behind it in the kernel's memory.
 *   - read() waits even with O_NONBLOCK.  poll() always reports writable.
 *   - Answers and events that are not read yet share a ring of 4096 bytes.  What
 *     does not fit overwrites the rest.
 *   - TRANSACTION_END without a transaction ends the machine ("rule 15").
 *   - A TRANSACTION_END that fails ends the transaction all the same.
 *
 * Limits: a descriptor is a FIFO to fstat() (a socket, if it is FreeBSD's); an inherited one can be closed in
 * a child process, and is a violation when used; over exec() it is lost; so is
 * one that close_range() closes.  A process in a WATCH that never returns can be
 * killed here, where on a real machine it stays, as a zombie with a thread in
 * xs_talkv.  Not emulated: permissions, access modes, the limits of a ring other
 * than that of 4096 bytes.  Of FreeBSD: a signal during write(), which gives the
 * answer to the next request of the domain; a suspend, which waits for the end of
 * all transactions; the limit of 1000 events that wait for a watch.
 *
 * Build: gcc -O2 -shared -fPIC -pthread -fvisibility=hidden -o fake_device.so kernel.c device.c
 *        (needs libxen-dev)
 *
 * kernel.c is what is behind all descriptors, device.c what is called on one.
 */
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include <xen/io/xs_wire.h>

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
	bool freebsd;
	int in, out;			/* a pipe: a byte is in it while there are messages */
	bool readable;			/* that byte is there, or with a reader */
	bool writing;			/* some write() has the buffer */
	int outstanding;
	struct message *head, **tail;
	char ring[4096];		/* FreeBSD's, in place of the messages */
	unsigned int produced, consumed;
	struct transaction *transactions;
	size_t len;
	union {
		struct xsd_sockmsg header;
		char bytes[XENSTORE_PAYLOAD_MAX];
	} buffer;
};

enum {
	EVENT_FIRST = 1, ACK_FIRST = 2, OLD = 4, WRONG_IDS = 8, SLOW = 16, STRICT = 32, DEAD = 64,
	FREEBSD = 128,
};

extern pthread_mutex_t lock;		/* to be held for all that is declared here */
extern pthread_cond_t news;
extern struct kernel *kernels;
extern unsigned int modes;

void violation(int rule, const char *what) __attribute__((noreturn));
void *allocate(size_t size);

struct kernel *find_kernel(const char *path);
void wake(struct kernel *k);
struct request *queue_request(struct kernel *k, struct file *f, struct xsd_sockmsg header,
			      char *body);
struct request *queue_own(struct kernel *k, struct file *f, uint32_t type, uint32_t tx_id,
			  const char *one, const char *two);
void free_request(struct request *r);
void answer_buffer(struct file *f, uint32_t type, const char *text);
void acknowledge(struct file *f, uint32_t type);
const char *name_of(int error);
struct transaction **find_transaction(struct file *f, uint32_t id);
void forget_transaction(struct transaction **p);
void forget_watch(struct kernel *k, struct watch *w);
void put(struct file *f);
