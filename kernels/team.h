/* Threads that work on one thing at a time, and sleep when there is none.
 *
 * Members meet at barriers while they work: they look for each other a short while, then let others
 * have the core.
 */
#pragma once

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>

#define MOST_MEMBERS 64
#define LOOKS_BEFORE_YIELD 4000

typedef struct {
    int64_t size;
    _Atomic int64_t arrived, round;
} Team;

typedef void Work(void *given, Team *team, int64_t member);

static struct {
    pthread_mutex_t busy, lock; /* busy: by whom the threads are used */
    pthread_cond_t begin, end;
    int64_t num_threads, ordered, running;
    Work *work;
    void *given;
    Team team;
} pool = {PTHREAD_MUTEX_INITIALIZER,
          PTHREAD_MUTEX_INITIALIZER,
          PTHREAD_COND_INITIALIZER,
          PTHREAD_COND_INITIALIZER,
          0,
          0,
          0,
          0,
          0,
          {1, 0, 0}};

/* Wait until all members are here; what each wrote before is seen by all behind. */
static inline void team_meet(Team *team) {
    if (team->size == 1) return;
    int64_t round = atomic_load_explicit(&team->round, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&team->arrived, 1, memory_order_acq_rel) + 1 == team->size) {
        atomic_store_explicit(&team->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&team->round, round + 1, memory_order_release);
        return;
    }
    for (int looks = 0; atomic_load_explicit(&team->round, memory_order_acquire) == round;)
        if (++looks > LOOKS_BEFORE_YIELD) sched_yield();
}

/* The part [*begin, *end) of `total` things that is a member's. */
static inline void team_share(const Team *team, int64_t member, int64_t total, int64_t *begin,
                              int64_t *end) {
    *begin = total * member / team->size;
    *end = total * (member + 1) / team->size;
}

static void *team_thread(void *number) {
    int64_t member = (int64_t)(intptr_t)number, done = 0;
    pthread_mutex_lock(&pool.lock);
    for (;;) {
        while (pool.ordered == done) pthread_cond_wait(&pool.begin, &pool.lock);
        done = pool.ordered;
        if (member >= pool.team.size) continue;
        pthread_mutex_unlock(&pool.lock);
        pool.work(pool.given, &pool.team, member);
        pthread_mutex_lock(&pool.lock);
        if (--pool.running == 0) pthread_cond_signal(&pool.end);
    }
    return 0;
}

/* Let up to `size` threads, the caller among them, do one work; returns when all are done. */
static void team_run(Work *work, void *given, int64_t size) {
    if (size > MOST_MEMBERS) size = MOST_MEMBERS;
    if (size <= 1 || pthread_mutex_trylock(&pool.busy)) {
        Team alone = {1, 0, 0};
        work(given, &alone, 0);
        return;
    }
    pthread_mutex_lock(&pool.lock);
    while (pool.num_threads + 1 < size) {
        pthread_t thread;
        void *number = (void *)(intptr_t)(pool.num_threads + 1);
        if (pthread_create(&thread, 0, team_thread, number)) break;
        pthread_detach(thread);
        pool.num_threads++;
    }
    if (size > pool.num_threads + 1) size = pool.num_threads + 1;
    pool.work = work;
    pool.given = given;
    pool.team.size = size;
    pool.running = size - 1;
    pool.ordered++;
    pthread_cond_broadcast(&pool.begin);
    pthread_mutex_unlock(&pool.lock);
    work(given, &pool.team, 0);
    pthread_mutex_lock(&pool.lock);
    while (pool.running) pthread_cond_wait(&pool.end, &pool.lock);
    pthread_mutex_unlock(&pool.lock);
    pthread_mutex_unlock(&pool.busy);
}
