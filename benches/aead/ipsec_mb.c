/* Intel's ipsec-mb by its job API: for each line of standard input, "OP BATCH COUNT BYTES TURNS", takes so many turns and answers with the
 * median of the nanoseconds that they took and the last message's tag.
 *
 * The messages are those of the bench: key 0x42…, nonces 0 and up, text 0x03…, OP being seal, open or gather. Jobs are filled in within the
 * turn, as the interface asks for it; nonces are there beforehand. */
#include <intel-ipsec-mb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { TAG = 16, NONCE = 12, HEADER = 52 };

static IMB_MGR *manager;
static uint8_t key[32];

static void submit(uint8_t *message, size_t bytes, const uint8_t *nonce, uint8_t *tag, int is_open)
{
	IMB_JOB *job = IMB_GET_NEXT_JOB(manager);
	job->cipher_mode = IMB_CIPHER_CHACHA20_POLY1305;
	job->hash_alg = IMB_AUTH_CHACHA20_POLY1305;
	job->cipher_direction = is_open ? IMB_DIR_DECRYPT : IMB_DIR_ENCRYPT;
	job->chain_order = is_open ? IMB_ORDER_HASH_CIPHER : IMB_ORDER_CIPHER_HASH;
	job->enc_keys = key;
	job->dec_keys = key;
	job->key_len_in_bytes = sizeof key;
	job->src = message;
	job->dst = message;
	job->cipher_start_src_offset_in_bytes = 0;
	job->msg_len_to_cipher_in_bytes = bytes;
	job->hash_start_src_offset_in_bytes = 0;
	job->msg_len_to_hash_in_bytes = bytes;
	job->iv = nonce;
	job->iv_len_in_bytes = NONCE;
	job->u.CHACHA20_POLY1305.aad = NULL;
	job->u.CHACHA20_POLY1305.aad_len_in_bytes = 0;
	job->auth_tag_output = tag;
	job->auth_tag_output_len_in_bytes = TAG;
	IMB_SUBMIT_JOB_NOCHECK(manager);
}

static double turn(const char *op, size_t batch, size_t count, size_t bytes, uint8_t *messages, const uint8_t *source,
		   const uint8_t *nonces, uint8_t *tags)
{
	int is_open = !strcmp(op, "open"), is_gather = !strcmp(op, "gather");
	size_t stride = bytes + TAG;
	struct timespec begin, end;
	clock_gettime(CLOCK_MONOTONIC, &begin);
	for (size_t first = 0; first < count; first += batch) {
		for (size_t at = first; at < first + batch; at++) {
			uint8_t *message = messages + at * stride;
			if (is_gather) {
				memcpy(message, source + at * bytes, HEADER);
				memcpy(message + HEADER, source + at * bytes + HEADER, bytes - HEADER);
			}
			submit(message, bytes, nonces + at * NONCE, is_open ? tags + at * TAG : message + bytes, is_open);
		}
		while (IMB_FLUSH_JOB(manager))
			;
		for (size_t at = first; is_open && at < first + batch; at++)
			if (memcmp(tags + at * TAG, messages + at * stride + bytes, TAG))
				exit(3);
	}
	clock_gettime(CLOCK_MONOTONIC, &end);
	return (end.tv_sec - begin.tv_sec) * 1e9 + (end.tv_nsec - begin.tv_nsec);
}

static int by_size(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

int main(void)
{
	char op[8];
	size_t batch, count, bytes, turns;
	manager = alloc_mb_mgr(0);
	if (!manager)
		return 1;
	init_mb_mgr_auto(manager, NULL);
	memset(key, 0x42, sizeof key);
	while (scanf("%7s %zu %zu %zu %zu", op, &batch, &count, &bytes, &turns) == 5) {
		size_t len = count * (bytes + TAG);
		uint8_t *messages = malloc(len), *source = malloc(count * bytes);
		uint8_t *nonces = calloc(count, NONCE), *tags = malloc(count * TAG);
		double *times = calloc(turns, sizeof *times);
		if (!messages || !source || !nonces || !tags || !times || !turns)
			return 2;
		memset(source, 3, count * bytes);
		for (uint32_t at = 0; at < count; at++)
			memcpy(nonces + at * NONCE + 4, &at, sizeof at);
		for (size_t at = 0; at < turns; at++) {
			memset(messages, 3, len);
			if (!strcmp(op, "open"))
				turn("seal", batch, count, bytes, messages, source, nonces, tags);
			times[at] = turn(op, batch, count, bytes, messages, source, nonces, tags);
		}
		qsort(times, turns, sizeof *times, by_size);
		printf("%.0f ", times[turns / 2]);
		/* Opening leaves it as it is. */
		for (size_t at = len - TAG; at < len; at++)
			printf("%02x", messages[at]);
		printf("\n");
		fflush(stdout);
		free(messages);
		free(source);
		free(nonces);
		free(tags);
		free(times);
	}
	free_mb_mgr(manager);
	return 0;
}
