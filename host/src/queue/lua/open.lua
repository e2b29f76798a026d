-- Finds out what the topic's keys are, and creates the group in each of its
-- streams. Never creates a key: its type is decided by the first publisher.
-- KEYS 1: stream   2: state   3: high   4: work   5: low
-- ARGV 1: group
-- Returns { kind, paused, states, others }: kind is none, stream, list (also for a
-- key that was a list when it last existed) or another type; paused is 1 or 0;
-- states are, for high, stream, work and low, 1 for a stream to read from, 0 for a
-- missing key, -1 for a key to leave alone; others are how many other groups read
-- each.
--
-- A lost group is created again at the floor: entries up to there were delivered
-- and acknowledged before, and must not run again. Before the first read of a
-- stream the state gets its `start`, the last id that the group had delivered then:
-- what is not pending up to there was never ours.
local stream, state, group = KEYS[1], KEYS[2], ARGV[1]
local known, paused = unpack(redis.call('HMGET', state, 'kind', 'paused'))
local states, others = {}, {}

-- Stores the start, and moves `start` and `history` back where the group delivers
-- entries before them once more: it is a new one, or XGROUP SETID has moved it. May
-- be refused at maxmemory, which must not prevent reading.
local function store_positions(last, class)
  for _, name in ipairs({ 'start', 'history' }) do
    local field = class == '' and name or name .. ':' .. class
    local stored = redis.call('HGET', state, field)
    if stored and is_behind(full(stored), last) or not stored and name == 'start' then
      redis.pcall('HSET', state, field, last)
    end
  end
end

local function open(key, class)
  local kind, count, last = redis.call('TYPE', key).ok, 0, nil
  if kind ~= 'stream' then return kind == 'none' and 0 or -1, 0 end
  -- At maxmemory Redis refuses XGROUP CREATE even for an existing group, and a
  -- worker that starts then has to read messages nevertheless.
  for _, info in ipairs(redis.call('XINFO', 'GROUPS', key)) do
    if info[2] == group then
      for i = 1, #info, 2 do if info[i] == 'last-delivered-id' then last = info[i + 1] end end
    else
      count = count + 1
    end
  end
  if not last then
    last = redis.call('HGET', state, class == '' and 'floor' or 'floor:' .. class) or '0'
    local created = redis.pcall('XGROUP', 'CREATE', key, group, last)
    if created.err and not string.find(created.err, 'BUSYGROUP', 1, true) then error(created) end
  end
  store_positions(full(last), class)
  return 1, count
end

local kind = redis.call('TYPE', stream).ok
if (kind == 'list' or kind == 'stream') and known ~= kind then
  -- May be refused at maxmemory, which must not prevent reading: the scripts that
  -- empty a list store the kind too.
  redis.pcall('HSET', state, 'kind', kind)
elseif kind == 'none' and known == 'list' then
  kind = 'list'
end
states[1], others[1] = open(KEYS[3], 'high')
-- A list of plain clients does not become a stream.
if kind == 'list' then states[2], others[2] = -1, 0 else states[2], others[2] = open(stream, '') end
states[3], others[3] = open(KEYS[4], 'work')
-- Once the key is a stream, nothing is added to an empty work stream any more.
if kind == 'stream' and states[3] == 1 and redis.call('XLEN', KEYS[4]) == 0 then states[3] = -1 end
states[4], others[4] = open(KEYS[5], 'low')
return { kind, paused and 1 or 0, states, others }
