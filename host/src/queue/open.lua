-- Looks what the topic's key is, and makes sure of the group in each of its
-- streams. Never creates a key: whoever publishes first decides what it is.
-- KEYS 1: stream   2: state   3: high   4: work   5: low
-- ARGV 1: group
-- Returns { kind, paused, sources }: none, stream, list (also where the key was
-- one when it last existed) or another type; 1 or 0; and for high, stream, work
-- and low 1 where it is to be read from, else 0.
--
-- A lost group is made again at the floor: what lies up to it was delivered
-- and acknowledged once, and must not run again.
local stream, state, group = KEYS[1], KEYS[2], ARGV[1]
local known, floor, paused = unpack(redis.call('HMGET', state, 'kind', 'floor', 'paused'))

local function readable(key, start)
  if redis.call('TYPE', key).ok ~= 'stream' then return 0 end
  -- Making it is refused at maxmemory even where it stands, and a worker that
  -- starts then has to take messages all the more.
  for _, info in ipairs(redis.call('XINFO', 'GROUPS', key)) do
    if info[2] == group then return 1 end
  end
  local made = redis.pcall('XGROUP', 'CREATE', key, group, start)
  if made.err and not string.find(made.err, 'BUSYGROUP', 1, true) then error(made) end
  return 1
end

local kind = redis.call('TYPE', stream).ok
if (kind == 'list' or kind == 'stream') and known ~= kind then
  -- Refused at maxmemory, which must keep nobody from taking: who empties the
  -- list writes it down anyway.
  redis.pcall('HSET', state, 'kind', kind)
elseif kind == 'none' and known == 'list' then
  kind = 'list'
end
local work = readable(KEYS[4], '0')
-- A list's work stream stands empty for ever once the key is a stream.
if kind == 'stream' and work == 1 and redis.call('XLEN', KEYS[4]) == 0 then work = 0 end
return {
  kind, paused and 1 or 0,
  { readable(KEYS[3], '0'), kind == 'stream' and readable(stream, floor or '0') or 0, work, readable(KEYS[5], '0') },
}
