-- Decides which deliveries may run where the topic deduplicates: of all messages with
-- one key, one at a time over all workers, and none once one has finished.
-- KEYS 1: state   2: dedup:claims   3: delayed   4: delayed:body   5..: the streams
-- ARGV 1: group   2: our consumer   3: window in ms   4: lease in ms   5: 1 if the
--   deliveries were counted for the rate limit   6: number of streams   7: the number
--   of the usual one
--   then for each stream: 1 to delete its entries, 0 where another group reads it
--   too; its class in tokens; the smallest and the largest id of its deliveries, or
--   empty where they were delivered just now
--   then for each delivery: hash of its key, id, first entry, and a text: empty, or
--   the number of its stream if it is not the usual one, expiry in Unix ms or 0, and how
--   many workers were lost with it (the usual case is the cheapest to read)
-- Returns for each: 'run', 'duplicate', 'expired', 'busy', 'gone' (it is not pending
-- for us), or an error. Afterwards what may run has the claim of its key for two
-- leases. What is busy, because another message has the claim, is delayed: for one
-- lease at first, then for twice as long each time, up to 5 minutes; nothing of it is
-- changed but gw-parked, the number of times. No script that settles the other message
-- releases it: it could not tell how many there are.
-- May be sent twice: what has the claim gets it again.
local state, claims, delayed, body = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local group, consumer, window, lease = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local PARKED_MAX_MS = 300000
local now = now_ms()

check_type(claims, 'hash')
-- Past claims of messages that were deleted are removed bit by bit, as nobody else
-- would. That comes first also because Redis never refuses it at maxmemory, and after
-- one write a script may write on. (A renewal of the entries would do as well, but it
-- drops those that were deleted meanwhile from the pending list, without a trace.)
local past, sample = { '' }, redis.call('HRANDFIELD', claims, 2, 'WITHVALUES')
for i = 1, #sample, 2 do
  if claim_end(sample[i + 1]) + CLAIM_GRACE_MS < now then past[#past + 1] = sample[i] end
end
redis.call('HDEL', claims, unpack(past))

local streams, begin = {}, 8
for i = 1, tonumber(ARGV[6]) do
  local stream = { key = KEYS[4 + i], deletes = ARGV[begin] == '1', class = ARGV[begin + 1] }
  if ARGV[begin + 2] ~= '' then
    stream.pending = {}
    local rows = redis.call('XPENDING', stream.key, group, ARGV[begin + 2], ARGV[begin + 3], 100000, consumer)
    for _, row in ipairs(rows) do stream.pending[row[1]] = true end
  end
  streams[i], begin = stream, begin + 4
end
local hashes = {}
for at = begin, #ARGV, 4 do hashes[#hashes + 1] = ARGV[at] end
local held, finished = redis.call('HMGET', claims, unpack(hashes)), finish_times(state, claims, hashes, now, window)

-- The fields of an entry that is parked once more, and for how long. Its first entry
-- and the workers that were lost with it are known from the old entry only.
local function parked_fields(old, first, crashes)
  local set, fields, times = { ['gw-parked'] = true }, {}, 0
  if crashes ~= '0' then set['gw-crashes'], set['gw-first'] = true, true end
  for i = 1, #old, 2 do
    if old[i] == 'gw-parked' then times = math.floor(tonumber(old[i + 1]) or 0) end
    if not set[old[i]] then
      fields[#fields + 1] = old[i]
      fields[#fields + 1] = old[i + 1]
    end
  end
  times = math.max(0, math.min(times, 30))
  local added = { 'gw-parked', integer(times + 1) }
  if crashes ~= '0' then added = { 'gw-parked', integer(times + 1), 'gw-crashes', crashes, 'gw-first', first } end
  for i = 1, #added do fields[#fields + 1] = added[i] end
  return fields, math.min(lease * 2 ^ times, PARKED_MAX_MS)
end

local function park(stream, id, first, crashes)
  local row = redis.call('XPENDING', stream.key, group, id, id, 1, consumer)[1]
  local entry = row and redis.call('XRANGE', stream.key, id, id)[1]
  if not entry then return 'gone' end
  check_type(delayed, 'zset')
  check_type(body, 'hash')
  local name = token('s', stream.class, id)
  local fields, delay = parked_fields(entry[2], first, crashes)
  redis.call('HSET', body, name, cmsgpack.pack(fields))
  redis.call('ZADD', delayed, integer(now + delay), name)
  redis.call('XACK', stream.key, group, id)
  if stream.deletes then redis.call('XDEL', stream.key, id) end
  redis.pcall('HINCRBY', state, 'parked', 1)
  return 'busy'
end

-- By the hash of the key, the claims that change here; false for one that is free.
local changed, taken, freed = {}, { 'HSET', claims }, { 'HDEL', claims }
local usual, taken_until = streams[tonumber(ARGV[7])], string.format('%013.0f ', now + 2 * lease)

-- The answer for the n-th delivery. A message that returns is judged before it is
-- parked again.
local function answer(n)
  local at, hash = begin + 4 * (n - 1), hashes[n]
  local id, first, stream, expires, crashes = ARGV[at + 1], ARGV[at + 2], usual, 0, '0'
  if ARGV[at + 3] ~= '' then
    local number
    number, expires, crashes = string.match(ARGV[at + 3], '^(%d) (%S+) (%S+)$')
    stream, expires = streams[tonumber(number)], tonumber(expires)
  end
  if stream.pending and not stream.pending[id] then return 'gone' end
  local text = changed[hash]
  if text == nil then text = held[n] end
  local is_ours = text and is_of(text, first)
  local is_finished = finished[hash]
  if is_finished or expires ~= 0 and expires <= now then
    if is_ours then changed[hash], freed[#freed + 1] = false, hash end
    return is_finished and 'duplicate' or 'expired'
  end
  if text and not is_ours and claim_end(text) > now then
    return result_text(pcall(park, stream, id, first, crashes))
  end
  text = string.format('%s%-51s', taken_until, first)
  changed[hash], taken[#taken + 1], taken[#taken + 2] = text, hash, text
  return 'run'
end

local answers, not_run = {}, 0
for n = 1, #hashes do
  answers[n] = answer(n)
  if answers[n] == 'duplicate' or answers[n] == 'expired' or answers[n] == 'busy' then not_run = not_run + 1 end
end

if #freed > 2 then redis.call(unpack(freed)) end
if #taken > 2 then
  redis.call(unpack(taken))
  keep_until(claims, now + 2 * lease + CLAIM_GRACE_MS)
end

-- What is not run has not started.
if ARGV[5] == '1' and not_run > 0 then
  local packed = redis.call('HGET', state, 'rate')
  local steps = packed and cmsgpack.unpack(packed) or {}
  for i = #steps, 1, -1 do
    local returned = math.min(not_run, steps[i][2])
    steps[i][2] = steps[i][2] - returned
    not_run = not_run - returned
  end
  if packed then redis.call('HSET', state, 'rate', cmsgpack.pack(steps)) end
end
return answers
